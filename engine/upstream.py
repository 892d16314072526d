"""From the inert stand-ins of an upstream checkpoint to plain values: architecture, weights, names and the rest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from engine.rebuild import StandIn
from models.config import KNOWN_KEYS
from utils.errors import UserError

MAX_DEPTH = 40  # modules inside modules, or lists inside lists; real ones reach about 10
MAX_VALUES = 100_000
MAX_MODULES = 100_000
MAX_NAME = 100
DETECTION_MODELS = ("Model", "DetectionModel")
OTHER_TASKS = {
    "SegmentationModel": "segmentation",
    "ClassificationModel": "classification",
    "PoseModel": "pose",
    "OBBModel": "oriented-box",
    "RTDETRDetectionModel": "RT-DETR",
    "WorldModel": "open-vocabulary",
    "Ensemble": "ensemble",
}
YOLOV7_HEADS = ("IDetect", "IAuxDetect", "IBin", "IKeypoint")
YOLOV7_BLOCKS = frozenset(
    {"MP", "SP", "ReOrg", "RepConv", "DownC", "SPPCSPC", "Shortcut", "Chuncat", "Foldcut", "ImplicitA", "ImplicitM"}
)
LATER_BLOCKS = {
    "RepNCSPELAN4": "YOLOv9",
    "SCDown": "YOLOv10",
    "C3k2": "YOLO11 or later",
    "A2C2f": "YOLO12",
}
PROFILER_BUFFERS = ("total_ops", "total_params")  # left behind by a FLOPs counter, not part of the model


@dataclass
class UpstreamModel:
    """What a pickled detector says about itself, as plain values and tensors.

    Attributes:
        family: "yolov5", "yolov7", "yolov8" or "mobile".
        state_dict: float32, keys and order as upstream's `state_dict()`.
        anchors: pixels, one list [w, h, w, h, ...] a level; None for an anchor-free head.
    """

    family: str
    head: str
    num_layers: int
    yaml: dict[str, Any]
    state_dict: dict[str, torch.Tensor]
    names: list[str]
    nc: int
    stride: list[float]
    anchors: list[list[float]] | None
    hyp: dict[str, Any]


def find_models(content: Any, where: str) -> tuple[StandIn | None, StandIn | None]:
    """The averaged and the live model of a checkpoint's content, either of which may be absent.

    Raises:
        UserError: the content holds no pickled model.
    """
    if isinstance(content, StandIn):
        return None, content
    if not isinstance(content, Mapping):
        raise UserError(f"{where} holds a {type(content).__name__}, not a checkpoint; give a .pt file of a training")
    ema, model = content.get("ema"), content.get("model")
    ema = ema if isinstance(ema, StandIn) else None
    model = model if isinstance(model, StandIn) else None
    if ema or model:
        return ema, model
    holders = (content, model, content.get("model"), content.get("state_dict"))
    if any(isinstance(m, Mapping) and m and all(isinstance(v, torch.Tensor) for v in m.values()) for m in holders):
        raise UserError(
            f"{where} holds weights without an architecture (a plain state_dict); give the training's .pt file"
        )
    keys = ", ".join(_printable(str(key))[:30] for key in list(content)[:8]) or "nothing"
    raise UserError(
        f"{where} holds no YOLO model (found: {keys}); give a .pt file of a YOLOv5, YOLOv7 or YOLOv8 training"
    )


def read_model(model: StandIn, where: str, file_size: int) -> UpstreamModel:
    """Plain values and tensors of a pickled detector.

    Args:
        model: the stand-in of the whole model.
        where: the file, for error messages.
        file_size: bytes of the file; bounds the size of the state dict.

    Raises:
        UserError: not a detector of a supported family, or the tree contradicts itself.
    """
    if model.short_name not in DETECTION_MODELS:
        task = OTHER_TASKS.get(model.short_name)
        what = f"a {task} model" if task else f"a pickled {model.class_name}"
        raise UserError(f"{where} holds {what}; only YOLOv5, YOLOv7 and YOLOv8 detectors are supported")
    layers = _children(model).get("model")
    modules = _children(layers) if isinstance(layers, StandIn) else {}
    if not modules:
        raise UserError(f"{where} holds a {model.class_name} without layers; fetch the file again")
    head = list(modules.values())[-1]
    family = _family(model, head, where)
    yaml = _yaml(model, where)
    nc = _class_count(head.attributes.get("nc", model.attributes.get("nc", yaml.get("nc"))), where)
    stride = _numbers(model.attributes.get("stride", head.attributes.get("stride")))
    return UpstreamModel(
        family=family,
        head=head.short_name,
        num_layers=len(modules),
        yaml={**yaml, "nc": nc, "family": family},
        state_dict=state_dict(model, where, file_size),
        names=class_names(model.attributes.get("names"), nc),
        nc=nc,
        stride=stride,
        anchors=_anchors(head, stride),
        hyp=_hyp(model),
    )


def class_names(names: Any, nc: int) -> list[str]:
    """Class names as a list, from upstream's list or {index: name}; a class without a name gets `class<index>`."""
    given = names if isinstance(names, Mapping) else dict(enumerate(names if isinstance(names, list | tuple) else ()))
    found = (given.get(i) for i in range(nc))
    return [
        _printable(str(name)) if isinstance(name, str | int | float) else f"class{i}" for i, name in enumerate(found)
    ]


def _printable(text: str) -> str:
    """Text from a file as it may be shown on a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text[:MAX_NAME])


def state_dict(model: StandIn, where: str, file_size: int) -> dict[str, torch.Tensor]:
    """The parameters and persistent buffers of a stand-in tree, in float32, by upstream's keys and order."""
    tensors: dict[str, torch.Tensor] = {}
    elements_left = file_size  # weights may be shared, but not without end; they have two bytes or more
    for prefix, module in _walk(model, where):
        kept_out = module.attributes.get("_non_persistent_buffers_set") or ()
        for table in ("_parameters", "_buffers"):
            entries = module.attributes.get(table) or {}
            for name, tensor in entries.items() if isinstance(entries, Mapping) else ():
                if tensor is None or name in kept_out or name in PROFILER_BUFFERS:
                    continue
                if not isinstance(tensor, torch.Tensor):
                    raise UserError(f"{where}: {prefix}{name[:MAX_NAME]} is not a tensor; fetch the file again")
                elements_left -= tensor.numel()
                if elements_left < 0:
                    raise UserError(
                        f"{where}: its tensors repeat themselves beyond the size of the file; it is malicious"
                    )
                tensors[f"{prefix}{name}"] = tensor.float() if tensor.is_floating_point() else tensor
    return tensors


def plain(value: Any) -> Any:
    """A value with everything that is not plain (stand-ins, arrays, small tensors) as numbers, lists or text.

    Raises:
        ValueError: nested too deeply, or too many values.
    """
    return _plain(value, MAX_DEPTH, [MAX_VALUES])


def plain_entry(mapping: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`plain` of a mapping in a file, with a UserError for one that has no end."""
    try:
        return plain(dict(mapping))
    except ValueError as error:
        raise UserError(f"{where}: its values are {error}; it is damaged or malicious") from error


def _plain(value: Any, depth: int, left: list[int]) -> Any:
    left[0] -= 1
    if depth < 0 or left[0] < 0:
        raise ValueError("nested without end")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {
            (key if isinstance(key, int | str) else str(key)): _plain(item, depth - 1, left)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, depth - 1, left) for item in value]
    if isinstance(value, np.ndarray | torch.Tensor):
        left[0] -= value.size if isinstance(value, np.ndarray) else value.numel()
        if left[0] < 0:
            raise ValueError("too many")
        return value.tolist() if math.prod(value.shape) else []  # else a list for each of (1 << 40, 0) rows
    if isinstance(value, StandIn) and value.short_name in ("IterableSimpleNamespace", "SimpleNamespace", "Namespace"):
        return _plain(value.attributes, depth - 1, left)
    return repr(value)[:200]


def _walk(model: StandIn, where: str) -> Iterator[tuple[str, StandIn]]:
    """Every module with the prefix of its keys, a module before its children, as `nn.Module.state_dict` goes."""
    stack, met = [("", model, 0)], 0
    while stack:
        prefix, module, depth = stack.pop()
        met += 1
        if depth > MAX_DEPTH or met > MAX_MODULES:
            raise UserError(f"{where}: its modules are nested without end; it is damaged or malicious")
        yield prefix, module
        for name, child in reversed(_children(module).items()):
            stack.append((f"{prefix}{name[:MAX_NAME]}.", child, depth + 1))


def _children(module: StandIn) -> dict[str, StandIn]:
    children = module.attributes.get("_modules")
    if not isinstance(children, Mapping):
        return {}
    return {str(name): child for name, child in children.items() if isinstance(child, StandIn)}


def _family(model: StandIn, head: StandIn, where: str) -> str:
    """The family, from the class of the head and of the blocks: YOLOv5 and YOLOv7 share their module paths."""
    classes = {module.short_name for _, module in _walk(model, where)}
    later = [name for block, name in LATER_BLOCKS.items() if block in classes]
    if later:
        raise UserError(f"{where} holds a {later[-1]} model; only YOLOv5, YOLOv7 and YOLOv8 are supported")
    if head.short_name in YOLOV7_HEADS:
        return "yolov7"
    if head.short_name != "Detect":
        raise UserError(f"{where}: its last layer is {head.class_name}; only detection heads are supported")
    if "DFL" in classes:
        return "yolov8"
    if not any(name.startswith("m.") for name, _ in _walk(head, where) if name):
        return "mobile"  # the prediction layers are ordinary layers before the head
    return "yolov7" if classes & YOLOV7_BLOCKS else "yolov5"


def _yaml(model: StandIn, where: str) -> dict[str, Any]:
    found = model.attributes.get("yaml", model.attributes.get("md"))
    if not isinstance(found, Mapping) or not found.get("backbone"):
        raise UserError(f"{where}: the model has no architecture (no yaml in it); it cannot be built from this file")
    return plain_entry({key: value for key, value in found.items() if key in KNOWN_KEYS}, where)


def _hyp(model: StandIn) -> dict[str, Any]:
    """Hyper-parameters as the model carries them; those of YOLOv5 and YOLOv7 hold loss gains already scaled to it."""
    for name in ("hyp", "args"):
        value = model.attributes.get(name)
        if isinstance(value, Mapping | StandIn):
            try:
                found = plain(value)
            except ValueError:
                return {}
            return found if isinstance(found, dict) else {}
    return {}


def _class_count(value: Any, where: str) -> int:
    if type(value) is not int or not 0 < value < 100_000:
        raise UserError(f"{where} does not say how many classes it has; it is damaged")
    return value


def _numbers(value: Any) -> list[float]:
    if isinstance(value, torch.Tensor) and value.numel() <= 16:
        return [float(v) for v in value.flatten().tolist()]
    numbers = value if isinstance(value, list | tuple) and len(value) <= 16 else ()
    return [float(v) for v in numbers if isinstance(v, int | float)]


def _anchors(head: StandIn, stride: list[float]) -> list[list[float]] | None:
    buffers = head.attributes.get("_buffers")
    anchors = buffers.get("anchors") if isinstance(buffers, Mapping) else None
    return pixel_anchors(anchors, stride) if isinstance(anchors, torch.Tensor) else None


def pixel_anchors(anchors: torch.Tensor, stride: Sequence[float]) -> list[list[float]] | None:
    """Anchors in pixels, a list [w, h, w, h, ...] a level, from the head's buffer in units of each level's stride.

    Args:
        anchors: (num_levels, na, 2).
        stride: of each level.
    """
    if anchors.dim() != 3 or len(anchors) != len(stride):
        return None
    pixels = anchors.float() * torch.tensor(stride).view(-1, 1, 1)  # (num_levels, na, 2)
    return [level.flatten().tolist() for level in pixels]
