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

from engine.exported import exported_kind, read_strings
from engine.upstream import class_names
from utils.boxes import xyxy_to_cxcywh
from utils.errors import UsageError, UserError
from utils.logging import LOGGER
from utils.nms import LAYOUTS

PACKAGES = {"onnxruntime": "onnxruntime>=1.18", "openvino": "openvino>=2024.4", "onnxslim": "onnxslim>=0.1.50"}
DEFAULT_STRIDE = 32
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

    def __call__(self, images: Tensor) -> Tensor:
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
        options.log_severity_level = 3
        try:
            self.session = runtime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # the package's exceptions have no common base
            raise _unreadable(path, "an ONNX model", error) from error
        self.strings: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)
        images = self.session.get_inputs()[0]
        self.input_name = images.name
        self.input_shape: Shape = tuple(side if isinstance(side, int) else None for side in images.shape)
        self.dtype = torch.float16 if images.type == "tensor(float16)" else torch.float32

    def __call__(self, images: Tensor) -> Tensor:
        output = self.session.run(None, {self.input_name: images.cpu().numpy()})[0]
        return torch.from_numpy(output).to(images.device)


class TorchScriptRuntime:
    """A traced file."""

    input_shape: Shape = (None, 3, None, None)

    def __init__(self, path: Path, device: torch.device) -> None:
        keys = ("family", "layout", "names", "stride", "half", "device", "nms")
        found: dict[str, Any] = dict.fromkeys(keys, "")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                self.network = torch.jit.load(str(path), map_location=device, _extra_files=found).eval()
        except (RuntimeError, ValueError) as error:
            raise _unreadable(path, "a TorchScript file", error) from error
        texts = {key: text.decode() if isinstance(text, bytes) else text for key, text in found.items()}
        self.strings = {key: text for key, text in texts.items() if text}
        self.dtype = torch.float16 if self.strings.get("half") == "true" else torch.float32
        traced_on = self.strings.get("device", device.type)
        if traced_on != device.type:  # the trace makes its grids there
            raise UserError(
                f"--weights {str(path)!r} was traced for the device {traced_on}; give --device {traced_on}, "
                f"or export it with --device {device}"
            )

    def __call__(self, images: Tensor) -> Tensor:
        output = self.network(images)
        return output if isinstance(output, Tensor) else output[0]


class OpenVinoRuntime:
    """An OpenVINO model on the CPU, in float32 also where the processor would rather compute with fewer bits."""

    def __init__(self, path: Path, device: torch.device) -> None:
        openvino = required("openvino")
        file = sorted(path.glob("*.xml"))[0] if path.is_dir() else path
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        try:
            network = openvino.Core().read_model(file)
            self.network = openvino.compile_model(network, "CPU", settings)
        except RuntimeError as error:
            raise _unreadable(path, "an OpenVINO model", error) from error
        self.strings: dict[str, str] = {}
        if network.has_rt_info("model_info"):
            information = network.get_rt_info("model_info")
            entries = information.value if hasattr(information, "value") else information
            self.strings = {key: str(getattr(value, "value", value)) for key, value in entries.items()}
        images = network.inputs[0]
        self.input_shape: Shape = tuple(d.get_length() if d.is_static else None for d in images.partial_shape)
        self.dtype = torch.float16 if images.element_type == openvino.Type.f16 else torch.float32

    def __call__(self, images: Tensor) -> Tensor:
        output = self.network(images.cpu().numpy())[0]
        return torch.from_numpy(np.array(output)).to(images.device)  # the network writes its own again


RUNTIMES: dict[str, Callable[[Path, torch.device], Runtime]] = {
    "onnx": OnnxRuntime,
    "torchscript": TorchScriptRuntime,
    "openvino": OpenVinoRuntime,
}


def open_runtime(path: str | Path, device: torch.device) -> Runtime:
    """The runtime of an exported file, by its name.

    Raises:
        UserError: the file cannot be read, or a package is missing.
    """
    return RUNTIMES[exported_kind(path) or ""](Path(path), device)


def _unreadable(path: Path, kind: str, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    return UserError(f"--weights {str(path)!r} cannot be read as {kind}, as its name says: {reason}; export it again")


class ExportedModel(nn.Module):
    """An exported file in the place of a model: gives `(decoded, None)` as a model in evaluation does.

    A last batch that is too small is filled up where the number of images is fixed. What suppression inside has kept is
    given as predictions with one class each, so that whatever comes after works as ever.

    Attributes:
        names, nc, stride, nms_layout: as a Model's.
        input_hw: the only height and width it takes; None where any multiple of the stride will do.
        num_images: the only number of images it takes at once; None for any.
        suppressed: suppression is inside.

    Args:
        path: an exported file; see `engine.exported.exported_kind`.
        device: where the images are, and where to compute if the runtime can.
        names: class names for a file that brings none.

    Raises:
        UserError: the file cannot be read, or is no detector as far as can be seen.
    """

    def __init__(self, path: str | Path, device: torch.device, names: Sequence[str] | None = None) -> None:
        super().__init__()
        self.path = str(path)
        self.runtime = open_runtime(path, device)
        shape = self.runtime.input_shape
        if len(shape) != 4 or shape[1] not in (3, None):
            raise UserError(f"--weights {self.path!r} takes an input of shape {shape}, not images (N, 3, H, W)")
        self.num_images = shape[0]
        height, width = shape[2:]
        self.input_hw = (height, width) if height and width else None
        values = read_strings(self.runtime.strings)
        self.names = self._class_names(values.get("names"), names)
        self.nc = len(self.names)
        self.stride = torch.tensor([self._stride(values.get("stride"))])
        layout = values.get("layout")
        self.suppressed = values.get("nms") is True
        self.nms_layout: str = layout if layout in LAYOUTS else self._layout_by_trial(device)
        if self.suppressed:
            inside = f"conf_thres {values.get('conf_thres')}, iou_thres {values.get('iou_thres')}"
            LOGGER.info(f"{self.path} has suppression inside ({inside}): weaker detections are not to be had from it")

    def _class_names(self, own: Any, given: Sequence[str] | None) -> list[str]:
        if isinstance(own, dict):
            own = {int(index): name for index, name in own.items()}
        if isinstance(own, list | dict) and own:
            return class_names(own, len(own))
        if not given:
            raise UserError(f"--weights {self.path!r} does not name its classes; give --data, a yaml with `names`")
        return list(given)

    def _stride(self, value: Any) -> int:
        return value if isinstance(value, int) and value > 0 else DEFAULT_STRIDE

    def _layout_by_trial(self, device: torch.device) -> str:
        """The layout of a file of another exporter, from the shape of what it gives."""
        height, width = self.input_hw or (PROBE_SIDE, PROBE_SIDE)
        output = self._run(torch.zeros(self.num_images or 1, 3, height, width, device=device))
        if output.ndim == 2 and output.shape[1] == ROW_WIDTH:
            self.suppressed = True
            return LAYOUTS[0]
        if output.ndim == 3 and output.shape[2] == 5 + self.nc:
            return LAYOUTS[0]
        if output.ndim == 3 and output.shape[1] == 4 + self.nc:
            return "yolov8"
        raise UserError(
            f"--weights {self.path!r} gives an output of shape {tuple(output.shape)}; a detector of {self.nc} classes "
            f"gives (N, boxes, {5 + self.nc}), (N, {4 + self.nc}, boxes) or rows of {ROW_WIDTH}; check --data"
        )

    @torch.no_grad()
    def forward(self, images: Tensor, augment: bool = False) -> tuple[Tensor, None]:
        """Detects.

        Args:
            images: (N, 3, H, W) in [0, 1].
            augment: must be False.

        Returns:
            The decoded predictions in the layout `nms_layout`, float32, and None in the place of raw maps.
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
            if self.suppressed:
                output = output[output[:, 0] < len(chunk)]
                output[:, 0] += start
            parts.append(output if self.suppressed else output[: len(chunk)])
        joined = torch.cat(parts)
        return (self._as_predictions(joined, len(images)) if self.suppressed else joined), None

    def _run(self, images: Tensor) -> Tensor:
        return self.runtime(images.to(self.runtime.dtype).contiguous()).float()

    def _as_predictions(self, rows: Tensor, num_images: int) -> Tensor:
        """Rows (n, 7) of what was kept as decoded predictions, with all confidence on one class."""
        image, class_index = rows[:, 0].long(), rows[:, 5].long()
        place = (image[:, None] == image).tril(-1).sum(1)  # (n,) within its image
        boxes, confidence = xyxy_to_cxcywh(rows[:, 1:5]), rows[:, 6:]
        class_scores = F.one_hot(class_index, self.nc).to(rows.dtype)
        if self.nms_layout == "yolov8":
            entries = torch.cat((boxes, class_scores * confidence), 1)
        else:
            entries = torch.cat((boxes, confidence, class_scores), 1)
        table = rows.new_zeros(num_images, int(place.max()) + 1 if len(rows) else 1, entries.shape[1])
        table[image, place] = entries
        return table.transpose(1, 2) if self.nms_layout == "yolov8" else table
