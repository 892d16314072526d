"""What export.py does: a checkpoint as files for other runtimes, each compared with PyTorch."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from checkpoints.checkpoint import load_checkpoint, load_model
from checkpoints.exported import ExportMetadata, refuse_exported
from checkpoints.upstream.write import find_release, save_upstream
from engine.exporting.check import sample_images, verify
from engine.exporting.formats import write_onnx, write_openvino, write_torchscript
from engine.exporting.modules import Decoded, Suppressed
from models.yolo import Model
from utils.device import select_device
from utils.errors import UsageError, UserError, unknown_name
from utils.logging import LOGGER
from utils.paths import existing_file
from utils.running.cli import MOST_BOXES, MOST_IMAGES, check_pixels, check_range, check_share
from utils.sizes import rounded_size

OPSETS = range(11, 21)  # of ONNX, that PyTorch's exporter of traces can write and the grids need
MOST_OFFSET = 1 << 20  # pixels between classes; float32 still tells a tenth of a pixel apart
NOT_BUILT_IN = {
    **dict.fromkeys(("engine", "tensorrt", "trt"), "TensorRT's trtexec --onnx=FILE"),
    **dict.fromkeys(("coreml", "mlmodel", "mlpackage"), "coremltools, from torchscript"),
    **dict.fromkeys(("tflite", "saved_model", "pb", "tfjs", "edgetpu", "litert"), "onnx2tf"),
    "paddle": "x2paddle",
    "ncnn": "pnnx, from torchscript",
    "mnn": "MNNConvert",
    "rknn": "rknn-toolkit2",
}
Write = Callable[[nn.Module, Tensor, ExportMetadata, Path], Path]


@dataclass(frozen=True)
class ExportOptions:
    """What to export, and how.

    Attributes:
        weights: a checkpoint.
        include: the formats, of `FORMATS`.
        img_size: side of the images, or height and width, in pixels.
        batch_size: images a call.
        dynamic: any number of images of any size.
        dynamic_batch: any number of images of this size; goes before `dynamic`, as upstream has it.
        end2end: suppression inside.
        max_wh, topk_all, iou_thres, conf_thres, agnostic_nms: of that; see export_modules.Suppressed.
        simplify: let onnxslim simplify the ONNX graph.
        half: float16.
        opset: of ONNX.
        release: of an upstream file, see `upstream_writer.RELEASES`; the newest of the family without.
        device: see `utils.device.select_device`.
    """

    weights: str
    include: tuple[str, ...] = ("onnx",)
    img_size: tuple[int, ...] = (640,)
    batch_size: int = 1
    dynamic: bool = False
    dynamic_batch: bool = False
    end2end: bool = False
    max_wh: int | None = None
    topk_all: int = 100
    iou_thres: float = 0.45
    conf_thres: float = 0.25
    agnostic_nms: bool = False
    simplify: bool = True
    half: bool = False
    opset: int = 17
    release: str | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Refuses values out of their range with a UsageError."""
        for name in self.include:
            if name.lower() in NOT_BUILT_IN:
                remedy = f"export onnx and convert that by {NOT_BUILT_IN[name.lower()]}"
                raise UsageError(f"--include {name}: this format is not built in; {remedy}")
            if name not in FORMATS:
                raise UsageError(str(unknown_name("format", name, FORMATS, "--include")))
        if len(self.img_size) not in (1, 2):
            raise UsageError(f"--img-size takes a side or height and width; got {len(self.img_size)} numbers")
        for side in self.img_size:
            check_pixels("--img-size", side)
        check_share("--conf-thres", self.conf_thres)
        check_share("--iou-thres", self.iou_thres)
        if self.release is not None and "upstream" not in self.include:
            raise UsageError("--release is that of an upstream file; add --include upstream")
        if self.opset not in OPSETS:
            raise UsageError(f"--opset must be from {OPSETS[0]} to {OPSETS[-1]}, got {self.opset}")
        check_range("--batch-size", self.batch_size, 1, MOST_IMAGES)
        check_range("--topk-all", self.topk_all, 1, MOST_BOXES)
        if self.max_wh is not None:
            check_range("--max-wh", self.max_wh, 0, MOST_OFFSET)


@dataclass
class Export:
    """A detector ready to be written.

    Attributes:
        options: what was asked for.
        path: the checkpoint.
        model: in evaluation, in its deployment form and fused.
        images: (batch, 3, H, W) of the dtype and on the device that it is traced with.
    """

    options: ExportOptions
    path: Path
    model: Model
    images: Tensor

    def module(self, suppressed: bool) -> Decoded | Suppressed:
        """What is traced: images to decoded predictions, or to rows of kept boxes."""
        if not suppressed:
            return Decoded(self.model).eval()
        o = self.options
        return Suppressed(self.model, o.conf_thres, o.iou_thres, o.topk_all, o.agnostic_nms, o.max_wh).eval()

    def metadata(self, suppressed: bool, dynamic_batch: bool, dynamic_size: bool) -> ExportMetadata:
        """What the file says of itself."""
        o = self.options
        batch, _, height, width = self.images.shape
        limits: dict[str, Any] = {"conf_thres": o.conf_thres, "iou_thres": o.iou_thres, "topk_all": o.topk_all}
        return ExportMetadata(
            family=self.model.family, layout=self.model.layout, names=tuple(self.model.names),
            stride=int(self.model.stride.max()), imgsz=(height, width), batch=batch, dynamic_batch=dynamic_batch,
            dynamic_size=dynamic_size, half=o.half, nms=suppressed, device=self.images.device.type,
            **(limits if suppressed else {}),
        )  # fmt: skip

    def shapes(self, metadata: ExportMetadata) -> list[tuple[int, int, int, int]]:
        """The shapes of images to compare at: the one that was traced, and another where one is possible."""
        batch, (height, width) = self.images.shape[0], metadata.imgsz
        shapes = [(batch, 3, height, width)]
        if metadata.dynamic_batch or metadata.dynamic_size:
            more = metadata.stride if metadata.dynamic_size else 0
            shapes.append((batch + metadata.dynamic_batch, 3, height + more, width + 2 * more))
        return shapes


def run_export(options: ExportOptions) -> list[Path]:
    """Writes a checkpoint in every format asked for, beside the checkpoint, and compares each file with PyTorch.

    Returns:
        The files (and folders).

    Raises:
        UserError: the checkpoint is not usable, a package is missing, or a file does not give what PyTorch gives.
    """
    refuse_exported(options.weights)
    path = existing_file(options.weights, "--weights")
    export = load_for_export(options, path, select_device(options.device))
    if options.release is not None:
        find_release(export.model.family, options.release)  # before any file is written
    written = [FORMATS[name](export) for name in dict.fromkeys(options.include)]
    return written


def load_for_export(options: ExportOptions, path: Path, device: torch.device) -> Export:
    """The checkpoint's model in its deployment form, and images to trace it with."""
    model = load_model(path, device, fuse=False)
    if options.end2end and model.layout.end_to_end:
        raise UsageError(f"--end2end: the boxes that {path} gives are final without it; leave it out")
    sizes = [rounded_size(size, int(model.stride.max()), "--img-size") for size in options.img_size]
    LOGGER.info(f"{path}: {model.summary(max(sizes))} at {max(sizes)} pixels a side")  # as trained, before folding
    model = model.reparameterize().fuse().eval().requires_grad_(False)
    images = sample_images((options.batch_size, 3, sizes[0], sizes[-1])).to(device)
    dtype = torch.float16 if options.half else torch.float32
    return Export(options, path, model.to(dtype), images.to(dtype))


def _as_torchscript(export: Export) -> Path:
    if export.options.end2end:
        LOGGER.warning("torchscript: without suppression inside; ONNX and OpenVINO have it")
    metadata = export.metadata(suppressed=False, dynamic_batch=True, dynamic_size=True)
    return _write(export, ".torchscript", write_torchscript, metadata)


def _as_onnx(export: Export) -> Path:
    write = partial(write_onnx, opset=export.options.opset, simplify=export.options.simplify)
    return _write(export, ".onnx", write, _chosen(export))


def _as_openvino(export: Export) -> Path:
    return _write(export, "_openvino_model", partial(write_openvino, opset=export.options.opset), _chosen(export))


def _as_upstream(export: Export) -> Path:
    model = load_model(export.path, fuse=False)  # with all that a training goes on from
    hyp = load_checkpoint(export.path).hyp
    target = export.path.with_name(f"{export.path.stem}_upstream.pt")
    result = save_upstream(model, target, hyp=hyp, release=export.options.release)
    LOGGER.info(f"{result}: for the upstream repository")
    return result


FORMATS: dict[str, Callable[[Export], Path]] = {
    "torchscript": _as_torchscript,
    "onnx": _as_onnx,
    "openvino": _as_openvino,
    "upstream": _as_upstream,
}


def _chosen(export: Export) -> ExportMetadata:
    """What the options ask for."""
    options = export.options
    any_size = options.dynamic and not options.dynamic_batch
    return export.metadata(options.end2end, options.dynamic or options.dynamic_batch, any_size)


def _write(
    export: Export,
    suffix: str,
    write: Write,
    metadata: ExportMetadata,
) -> Path:
    """Writes one file beside the checkpoint, and says how well it agrees with PyTorch."""
    difference = 0.0
    if metadata.nms:  # few boxes may pass, or none: what they are chosen from is compared first
        with tempfile.TemporaryDirectory() as scratch:
            plain = replace(metadata, nms=False)
            difference = _compared(export, write, plain, Path(scratch) / f"decoded{suffix}")
    result = export.path.with_name(f"{export.path.stem}{suffix}")
    difference = max(difference, _compared(export, write, metadata, result))
    files = [file for file in result.rglob("*") if file.is_file()] or [result]
    size = sum(file.stat().st_size for file in files) / 1e6
    LOGGER.info(f"{result}: {size:.1f} MB, largest relative difference from PyTorch {difference:.1g}")
    return result


def _compared(export: Export, write: Write, metadata: ExportMetadata, path: Path) -> float:
    """Writes a file, and removes it if it does not agree; the largest relative difference."""
    module = export.module(metadata.nms)
    write(module, export.images, metadata, path)
    try:
        return verify(path, module, export.shapes(metadata), export.images)
    except UserError:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise
