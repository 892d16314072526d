"""Exported files: which kind a path is, and what such a file says of itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from utils.detector import ANCHOR_FREE_LAYOUT, ANCHOR_LAYOUT, Layout
from utils.errors import UsageError, UserError
from utils.paths import existing_file
from utils.text import shown_path

TORCHSCRIPT_SUFFIXES = (".torchscript", ".torchscript.pt")
MAX_STRING = 1 << 22  # characters of a value: the names of a hundred thousand classes
MAX_NOTATION = 1 << 16  # of one in Python's notation, which takes long to read
LAYOUT_NAMES = {
    "yolov5": ANCHOR_LAYOUT,
    "yolov7": Layout(objectness=True, objectness_alone=True),
    "yolov8": ANCHOR_FREE_LAYOUT,
}
"""What files of earlier versions call their layout."""


@dataclass(frozen=True)
class ExportMetadata:
    """What an exported file says of itself.

    Attributes:
        family: yolov5, yolov7, yolov8 or mobile.
        layout: of the output, or what it would be without suppression inside.
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
    layout: Layout
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
    """The values of such strings, also of those that upstream's exporters write, which use Python's own notation.

    One that is neither, or too long for what these files say of themselves, stays text.
    """
    return {key: _value(text) for key, text in strings.items()}


def read_layout(value: Any) -> Layout | None:
    """The layout that a file says its predictions have; None where it does not say it.

    Args:
        value: as `read_strings` gives it: the values of a layout by name, or the name by which files of earlier
            versions call it.
    """
    if isinstance(value, str):
        return LAYOUT_NAMES.get(value)
    types = {one.name: type(one.default) for one in dataclasses.fields(Layout)}
    if not isinstance(value, dict) or {key: type(one) for key, one in value.items()} != types:
        return None
    try:
        return Layout(**value)
    except ValueError:
        return None


def _value(text: str) -> Any:
    if len(text) > MAX_STRING:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return yaml.safe_load(text) if len(text) <= MAX_NOTATION else text
    except (yaml.YAMLError, ValueError, RecursionError):
        return text  # some tool's own entry


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


def refuse_programs(weights: Iterable[str | Path]) -> None:
    """Raises the UsageError of files that are programs, unless the user has said that they are trusted."""
    for path in weights:
        if exported_kind(path) == "torchscript":
            raise UsageError(
                f"--weights {shown_path(path)} is a TorchScript file, which is a program: it may read and write all "
                "your files; add --trust if you know who made it, or give a checkpoint, an ONNX or an OpenVINO file"
            )


def refuse_exported(path: str | Path) -> None:
    """Raises the UserError of an exported file where a checkpoint is needed."""
    if exported_kind(path):
        raise UserError(
            f"{str(path)!r} is an exported model, made to detect with and nothing else; name the .pt it was made from"
        )
