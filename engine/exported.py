"""Exported files: which kind a path is, and what such a file says of itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from utils.errors import UserError
from utils.paths import existing_file

TORCHSCRIPT_SUFFIXES = (".torchscript", ".torchscript.pt")


@dataclass(frozen=True)
class ExportMetadata:
    """What an exported file says of itself.

    Attributes:
        family: yolov5, yolov7, yolov8 or mobile.
        layout: which of utils.nms.LAYOUTS the output has, or would have without suppression inside.
        names: class names.
        stride: sides of an image are multiples of it, in pixels.
        imgsz: height and width of an image in pixels; with `dynamic_size` those it was exported at.
        batch: images a call; with `dynamic_batch` those it was exported at.
        dynamic_batch, dynamic_size: any number of images, and any size, will do.
        half: takes float16 images.
        nms: suppression is inside: the output has rows [image, x1, y1, x2, y2, class, confidence].
        conf_thres, iou_thres, topk_all: of that suppression; None without.
        device: where a TorchScript file computes: cpu or cuda.
        task: detect.
    """

    family: str
    layout: str
    names: tuple[str, ...]
    stride: int
    imgsz: tuple[int, int]
    batch: int
    dynamic_batch: bool = False
    dynamic_size: bool = False
    half: bool = False
    nms: bool = False
    conf_thres: float | None = None
    iou_thres: float | None = None
    topk_all: int | None = None
    device: str = "cpu"
    task: str = "detect"

    def to_strings(self) -> dict[str, str]:
        """Strings by key, as the formats keep them: words as they are, all else as JSON, the names by their index."""
        values = dataclasses.asdict(self) | {"names": dict(enumerate(self.names))}
        return {key: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for key, v in values.items()}


def read_strings(strings: Mapping[str, str]) -> dict[str, Any]:
    """The values of such strings, also of those that upstream's exporters write, which use Python's own notation."""
    values = {}
    for key, text in strings.items():
        try:
            values[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            values[key] = text  # some tool's own entry
    return values


def exported_kind(path: str | Path) -> str | None:
    """The kind of exported file at a path by its name: onnx, torchscript or openvino; None for a checkpoint."""
    path = Path(path)
    name = path.name.lower()
    if name.endswith(TORCHSCRIPT_SUFFIXES):
        return "torchscript"
    if name.endswith(".onnx"):
        return "onnx"
    return "openvino" if name.endswith(".xml") or (path.is_dir() and any(path.glob("*.xml"))) else None


def existing_weights(path: str | Path) -> Path:
    """`path`, a file or the folder of an OpenVINO model, or a UserError that says what is missing."""
    return Path(path) if Path(path).is_dir() and exported_kind(path) else existing_file(path, "--weights")


def refuse_exported(path: str | Path) -> None:
    """Raises the UserError of an exported file where a checkpoint is needed."""
    if exported_kind(path):
        raise UserError(
            f"{str(path)!r} is an exported model, made to detect with and nothing else; name the .pt it was made from"
        )
