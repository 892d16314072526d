"""Exported files as detectors: they answer to what evaluation and detection ask of a model."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from checkpoints.exported import MAX_STRING, exported_kind, read_layout, read_strings, refuse_programs
from checkpoints.pickled.zip_directory import ZipError, read_directory, read_stored
from models.families import FAMILIES
from utils.detector import ANCHOR_FREE_LAYOUT, ANCHOR_LAYOUT, Layout
from utils.errors import UsageError, UserError
from utils.evaluation.metrics import YOLOV5_FIGURES, YOLOV8_FIGURES, Convention
from utils.logging import LOGGER
from utils.names import class_names
from utils.text import MAX_SHOWN, printable, shown, shown_path

PACKAGES = {"onnxruntime": "onnxruntime>=1.18", "openvino": "openvino>=2024.4", "onnxslim": "onnxslim>=0.1.50"}
DEFAULT_STRIDE = 32
MAX_STRIDE = 1024  # pixels
MAX_SIDE = 1 << 14  # pixels, and images a call
MAX_CLASSES = 100_000
MAX_REASON = 200  # characters
TORCHSCRIPT_KEYS = ("family", "layout", "names", "stride", "half", "device", "nms")
PROBE_SIDE = 64  # pixels, of the image that shows what a file of another exporter gives
ROW_WIDTH = 7  # image, x1, y1, x2, y2, class, confidence

Shape = tuple[int | None, ...]


def required(package: str) -> Any:
    """An optional package, or a UserError with the command that installs it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"{package} is not installed; do so with: pip install '{PACKAGES[package]}'") from error


class Runtime(Protocol):
    """Runs an exported file.

    Attributes:
        strings: what the file says of itself.
        input_shape: of the images, (N, 3, H, W), None where any will do.
        dtype: of the images.
    """

    strings: dict[str, str]
    input_shape: Shape
    dtype: torch.dtype

    def __call__(self, images: Tensor) -> Any:
        """The first output for images of this dtype, on their device."""


class OnnxRuntime:
    """An ONNX file in ONNX Runtime, on the GPU where it is built for one."""

    def __init__(self, path: Path, device: torch.device) -> None:
        runtime = required("onnxruntime")
        providers: list[Any] = ["CPUExecutionProvider"]
        if device.type == "cuda" and "CUDAExecutionProvider" in runtime.get_available_providers():
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
        elif device.type == "cuda":
            LOGGER.warning("this onnxruntime computes on the CPU; for the GPU: pip install onnxruntime-gpu")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = options.log_verbosity_level = 4  # what fails is said once, by us
        try:
            self.session = runtime.InferenceSession(str(path), options, providers=providers)
            self.strings: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)
            inputs = [(one.name, one.shape, one.type) for one in self.session.get_inputs()]
        except Exception as error:  # the package's exceptions have no common base
            raise _unreadable(path, "an ONNX model", error) from error
        self.input_name, shape, kind = _only_input(path, inputs)
        self.input_shape: Shape = tuple(side if isinstance(side, int) else None for side in shape)
        self.dtype = torch.float16 if kind == "tensor(float16)" else torch.float32

    def __call__(self, images: Tensor) -> Any:
        output = self.session.run(None, {self.input_name: images.cpu().numpy()})[0]
        return torch.from_numpy(output).to(images.device)


class TorchScriptRuntime:
    """A traced file."""

    input_shape: Shape = (None, 3, None, None)

    def __init__(self, path: Path, device: torch.device) -> None:
        self.strings = _torchscript_strings(path)
        self.dtype = torch.float16 if self.strings.get("half") == "true" else torch.float32
        traced_on = printable(self.strings.get("device", device.type), MAX_SHOWN)
        if traced_on != device.type:  # the trace makes its grids there
            raise UserError(
                f"--weights {shown_path(path)} was traced for the device {traced_on}; give --device {traced_on}, "
                f"or export it with --device {device}"
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                self.network = torch.jit.load(str(path), map_location=device).eval()
        except Exception as error:
            raise _unreadable(path, "a TorchScript file", error) from error

    def __call__(self, images: Tensor) -> Any:
        output = self.network(images)
        return output if isinstance(output, Tensor) else output[0]


def _class_number(index: Any) -> int | None:
    """The number of a class as a key of `names`, which may be text."""
    text = str(index) if isinstance(index, str) or type(index) is int and abs(index) < MAX_CLASSES else ""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_CLASSES)) else None


def _torchscript_strings(path: Path) -> dict[str, str]:
    """What a TorchScript file says of itself, which lies beside its code: nothing of it is run."""
    texts = {}
    try:
        with path.open("rb") as stream:
            for entry in read_directory(stream, path.stat().st_size):
                _, _, name = entry.name.partition("/")
                key = name.removeprefix("extra/")
                if key in TORCHSCRIPT_KEYS and key != name and entry.stored and entry.size <= MAX_STRING:
                    texts[key] = read_stored(stream, entry).decode()
    except (ZipError, OSError, ValueError) as error:
        raise _unreadable(path, "a TorchScript file", error) from error
    return {key: text for key, text in texts.items() if text}


class OpenVinoRuntime:
    """An OpenVINO model on the CPU, in float32 also where the processor would rather compute with fewer bits."""

    def __init__(self, path: Path, device: torch.device) -> None:
        openvino = required("openvino")
        file = sorted(path.glob("*.xml"))[0] if path.is_dir() else path
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        try:
            network = openvino.Core().read_model(file)
            inputs = [
                (one.get_any_name() if one.names else "", _openvino_shape(one.partial_shape), one.element_type)
                for one in network.inputs
            ]
            self.strings: dict[str, str] = _openvino_strings(network)
            _, shape, kind = _only_input(path, inputs)
            self.input_shape: Shape = tuple(shape)
            self.dtype = torch.float16 if kind == openvino.Type.f16 else torch.float32
            self.network = openvino.compile_model(network, "CPU", settings)
        except UserError:
            raise
        except Exception as error:
            raise _unreadable(path, "an OpenVINO model", error) from error

    def __call__(self, images: Tensor) -> Tensor:
        output = self.network(images.cpu().numpy())[0]
        return torch.from_numpy(np.array(output)).to(images.device)  # the network writes its own again


def _openvino_shape(shape: Any) -> Shape:
    if shape.rank.is_dynamic:
        return (None, None, None, None)
    return tuple(side.get_length() if side.is_static else None for side in shape)


def _openvino_strings(network: Any) -> dict[str, str]:
    if not network.has_rt_info("model_info"):
        return {}
    information = network.get_rt_info("model_info")
    entries = information.value if hasattr(information, "value") else information
    if not isinstance(entries, dict):
        return {}
    return {str(key): str(getattr(value, "value", value)) for key, value in entries.items()}


def _only_input(path: Path, inputs: Sequence[tuple[str, Sequence[Any], Any]]) -> tuple[str, Sequence[Any], Any]:
    """The name, shape and type of what a network takes, or the UserError of one that takes more than images."""
    if len(inputs) != 1:
        raise UserError(f"--weights {shown_path(path)} has {len(inputs)} inputs; a detector has one, the images")
    name, shape, kind = inputs[0]
    sides = [side for side in shape if isinstance(side, int)]
    if len(shape) != 4 or shape[1] not in (3, None) and isinstance(shape[1], int) or not _fits(sides):
        found = shown(tuple(side if isinstance(side, int) else None for side in shape))
        raise UserError(f"--weights {shown_path(path)} takes an input of shape {found}, not images (N, 3, H, W)")
    return name, shape, kind


def _fits(sides: Sequence[int]) -> bool:
    return all(0 < side <= MAX_SIDE for side in sides)


RUNTIMES: dict[str, Callable[[Path, torch.device], Runtime]] = {
    "onnx": OnnxRuntime,
    "torchscript": TorchScriptRuntime,
    "openvino": OpenVinoRuntime,
}


def open_runtime(path: str | Path, device: torch.device, trust: bool = False) -> Runtime:
    """The runtime of an exported file, by its name.

    Args:
        path: the file.
        device: where to compute, if the runtime can.
        trust: run a file that is a program.

    Raises:
        UserError: the file cannot be read, is a program that is not trusted, or a package is missing.
    """
    if not trust:
        refuse_programs([path])
    return RUNTIMES[exported_kind(path) or ""](Path(path), device)


def _unreadable(path: Path, kind: str, error: Exception) -> UserError:
    return UserError(
        f"--weights {shown_path(path)} cannot be read as {kind}, as its name says: {_reason(error)}; export it again"
    )


def _reason(error: Exception) -> str:
    """The line of an error that says most: of a TorchScript file, the last one, behind a print-out of its code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[-1] if lines and "TorchScript" in lines[0] else lines[0] if lines else type(error).__name__
    return printable(said, MAX_REASON)


class ExportedModel(nn.Module):
    """An exported file in the place of a model: gives `(decoded, None)` as a model in evaluation does.

    A last batch that is too small is filled up where the number of images is fixed. What suppression inside has kept is
    given as predictions with one class each, so that whatever comes after works as ever.

    Attributes:
        names, nc, stride, layout, convention: as a Model's.
        input_hw: the only height and width it takes; None where any multiple of the stride will do.
        num_images: the only number of images it takes at once; None for any.
        suppressed: suppression is inside.

    Args:
        path: an exported file; see `checkpoints.exported.exported_kind`.
        device: where the images are, and where to compute if the runtime can.
        names: class names for a file that brings none.
        trust: run a file that is a program.

    Raises:
        UserError: the file cannot be read, is a program that is not trusted, or no detector as far as can be seen.
    """

    def __init__(
        self, path: str | Path, device: torch.device, names: Sequence[str] | None = None, trust: bool = False
    ) -> None:
        super().__init__()
        self.path = str(path)
        self.shown = f"--weights {shown_path(path)}"
        self.runtime = open_runtime(path, device, trust)
        self.num_images, _, height, width = self.runtime.input_shape
        self.input_hw = (height, width) if height and width else None
        values = read_strings(self.runtime.strings)
        self.names = self._class_names(values.get("names"), names)
        self.nc = len(self.names)
        self.stride = torch.tensor([self._stride(values.get("stride"))])
        self.suppressed = values.get("nms") is True
        self.layout: Layout = ANCHOR_LAYOUT
        self.layout = read_layout(values.get("layout")) or self._layout_by_trial(device)
        usual = YOLOV5_FIGURES if self.layout.objectness else YOLOV8_FIGURES
        family = FAMILIES.get(str(values.get("family")))
        self.convention: Convention = family.convention if family else usual
        if self.suppressed:
            inside = f"conf_thres {shown(values.get('conf_thres'))}, iou_thres {shown(values.get('iou_thres'))}"
            LOGGER.info(f"{printable(self.path)} has suppression inside ({inside}): it gives no weaker detections")

    def _class_names(self, own: Any, given: Sequence[str] | None) -> list[str]:
        if isinstance(own, dict):
            own = {number: name for index, name in own.items() if (number := _class_number(index)) is not None}
            own = own if all(number in own for number in range(len(own))) else None  # a class would lack its own
        if isinstance(own, list | dict) and 0 < len(own) <= MAX_CLASSES:
            return class_names(own, len(own))
        if not given:
            raise UserError(f"{self.shown} does not name its classes; give --data, a yaml with `names`")
        return list(given)

    def _stride(self, value: Any) -> int:
        return value if type(value) is int and 0 < value <= MAX_STRIDE else DEFAULT_STRIDE

    def _layout_by_trial(self, device: torch.device) -> Layout:
        """The layout of a file of another exporter, from the shape of what it gives."""
        height, width = self.input_hw or (PROBE_SIDE, PROBE_SIDE)
        output = self._run(torch.zeros(self.num_images or 1, 3, height, width, device=device))
        if output.ndim == 2 and output.shape[1] == ROW_WIDTH:
            self.suppressed = True
            return ANCHOR_LAYOUT
        for layout in (ANCHOR_LAYOUT, ANCHOR_FREE_LAYOUT):
            if output.ndim == 3 and output.shape[layout.class_axis] == layout.num_values(self.nc):
                return layout
        raise UserError(
            f"{self.shown} gives an output of shape {tuple(output.shape)}; a detector of {self.nc} classes "
            f"gives (N, boxes, {5 + self.nc}), (N, {4 + self.nc}, boxes) or rows of {ROW_WIDTH}; check --data"
        )

    @torch.no_grad()
    def forward(self, images: Tensor, augment: bool = False) -> tuple[Tensor, None]:
        """Detects.

        Args:
            images: (N, 3, H, W) in [0, 1].
            augment: must be False.

        Returns:
            The decoded predictions in this layout, float32, and None in the place of raw maps.
        """
        if augment:
            raise UsageError(f"--augment needs a checkpoint; {self.path} is an exported model")
        if self.input_hw and tuple(images.shape[2:]) != self.input_hw:
            raise UserError(f"{self.path} takes images of {self.input_hw} pixels only, found {tuple(images.shape[2:])}")
        step = self.num_images or len(images)
        parts = []
        for start in range(0, len(images), step):
            chunk = images[start : start + step]
            output = self._run(F.pad(chunk, (0, 0, 0, 0, 0, 0, 0, step - len(chunk))))
            output = self._checked(output, step)
            if self.suppressed:
                output = output[output[:, 0] < len(chunk)]
                output[:, 0] += start
            parts.append(output if self.suppressed else output[: len(chunk)])
        joined = torch.cat(parts)
        return (self._as_predictions(joined, len(images)) if self.suppressed else joined), None

    def _run(self, images: Tensor) -> Tensor:
        """What the runtime gives, in float32."""
        try:
            output = self.runtime(images.to(self.runtime.dtype).contiguous())
            return output.float()
        except (MemoryError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:  # whatever the file's own operators raise
            shape = tuple(images.shape)
            raise UserError(
                f"{self.shown} fails on images of shape {shape}: {_reason(error)}; export it again"
            ) from error

    def _checked(self, output: Tensor, num_images: int) -> Tensor:
        """The output, or the UserError of one that is not what the file says of itself."""
        if self.suppressed:
            fits = output.ndim == 2 and output.shape[1] == ROW_WIDTH
            if fits and len(output):
                image, index = output[:, 0], output[:, 5]
                fits = bool(((image >= 0) & (image < num_images) & (index >= 0) & (index < self.nc)).all())
            expected = f"rows of {ROW_WIDTH} with an image below {num_images} and a class below {self.nc}"
        else:
            values = self.layout.num_values(self.nc)
            fits = output.ndim == 3 and (len(output), output.shape[self.layout.class_axis]) == (num_images, values)
            sides = [str(num_images), "boxes", "boxes"]
            sides[self.layout.class_axis] = str(values)
            expected = f"({', '.join(sides)})"
            if fits and self.layout.end_to_end:
                fits = bool(((output[..., 5] >= 0) & (output[..., 5] < self.nc)).all())
                expected += f" with a class below {self.nc}"
        if not fits:
            raise UserError(
                f"{self.shown} gives an output of shape {tuple(output.shape)}; by what it says of "
                f"itself and its {self.nc} classes it would be {expected}; export it again"
            )
        return output

    def _as_predictions(self, rows: Tensor, num_images: int) -> Tensor:
        """Rows (n, 7) of what was kept as decoded predictions, with all confidence on one class."""
        image, class_index = rows[:, 0].long(), rows[:, 5].long()
        place = (image[:, None] == image).tril(-1).sum(1)  # (n,) within its image
        entries = self.layout.of_finished(rows[:, 1:5], class_index, rows[:, 6], self.nc)
        table = rows.new_zeros(num_images, int(place.max()) + 1 if len(rows) else 1, entries.shape[1])
        table[image, place] = entries
        return self.layout.rows(table)
