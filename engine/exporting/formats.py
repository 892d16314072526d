"""Writes a detector as TorchScript, ONNX and OpenVINO."""

from __future__ import annotations

import inspect
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from checkpoints.exported import ExportMetadata
from engine.inference.runtimes import required
from utils.errors import UserError
from utils.paths import replacing

IMAGES, OUTPUT = "images", "output"


@contextmanager
def _without_notices() -> Iterator[None]:
    """The notices that tracing and the exporter built on it will be replaced one day are not the user's to mend."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning, torch.jit.TracerWarning):
            warnings.simplefilter("ignore", category)
        yield


def write_torchscript(module: nn.Module, images: Tensor, metadata: ExportMetadata, path: Path) -> Path:
    """A trace of the module, with each entry of the metadata as an extra file."""
    with _without_notices(), torch.no_grad(), replacing(path, "wb") as stream:
        traced = torch.jit.trace(module, images, check_trace=False)
        torch.jit.save(traced, stream, _extra_files=metadata.to_strings())
    return path


def write_onnx(
    module: nn.Module, images: Tensor, metadata: ExportMetadata, path: Path, *, opset: int = 17, simplify: bool = True
) -> Path:
    """An ONNX graph with the input "images" and the output "output", and the metadata in its properties."""
    import onnx

    graph = onnx.load_from_string(_traced_graph(module, images, metadata, opset))
    if simplify:
        graph = required("onnxslim").slim(graph)
    onnx.helper.set_model_props(graph, metadata.to_strings())
    onnx.checker.check_model(graph)
    with replacing(path, "wb") as stream:
        stream.write(graph.SerializeToString())
    return path


def _traced_graph(module: nn.Module, images: Tensor, metadata: ExportMetadata, opset: int) -> bytes:
    """The graph, by the exporter that works on traces.

    The one that works on torch.export takes some thirty times as long and does not understand pooling at dynamic sizes
    (max pooling by its own stride, twice, in YOLOv7).
    """
    axes = {0: "batch"} if metadata.dynamic_batch else {}
    if metadata.dynamic_size:
        axes |= {2: "height", 3: "width"}
    outputs = {0: "detections"} if metadata.nms else {0: "batch"} if metadata.dynamic_batch else {}
    if metadata.dynamic_size and not metadata.nms:
        outputs |= {metadata.layout.box_axis: "boxes"}
    by_trace: dict[str, Any] = {}
    if "dynamo" in inspect.signature(torch.onnx.export).parameters:  # older ones know no other way
        by_trace["dynamo"] = False
    with _without_notices(), torch.no_grad(), tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "graph.onnx"
        try:
            torch.onnx.export(
                module, (images,), str(path), opset_version=opset, input_names=[IMAGES], output_names=[OUTPUT],
                dynamic_axes={IMAGES: axes, OUTPUT: outputs}, **by_trace,
            )  # fmt: skip
        except torch.onnx.errors.OnnxExporterError as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"this model cannot be written as ONNX with --opset {opset}: {reason}") from error
        return path.read_bytes()


def write_openvino(
    module: nn.Module, images: Tensor, metadata: ExportMetadata, folder: Path, *, opset: int = 17
) -> Path:
    """A folder with an OpenVINO model, the metadata in its rt_info at model_info."""
    openvino = required("openvino")
    with tempfile.TemporaryDirectory() as scratch:
        graph = write_onnx(module, images, metadata, Path(scratch) / "graph.onnx", opset=opset)
        network = openvino.convert_model(graph)
        for key, text in metadata.to_strings().items():
            network.set_rt_info(text, ["model_info", key])
        draft = Path(scratch) / "model"
        openvino.save_model(network, draft / f"{folder.name.removesuffix('_openvino_model')}.xml",
                            compress_to_fp16=metadata.half)  # fmt: skip
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(draft, folder)
    return folder
