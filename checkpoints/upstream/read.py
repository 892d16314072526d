"""From the inert stand-ins of an upstream checkpoint to plain values: architecture, weights, names and the rest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from checkpoints.architecture import check_architecture
from checkpoints.pickled.rebuild import StandIn, printable
from checkpoints.upstream.facts import file_facts, image_size
from checkpoints.upstream.families import family_of, guess_release, refuse_other_models
from checkpoints.upstream.structure import Facts, default_activation, pickled_facts
from models.config import KNOWN_KEYS
from models.families import FAMILIES
from utils.errors import UserError
from utils.names import class_names
from utils.text import shown

MAX_DEPTH = 40  # modules inside modules, or lists inside lists; real ones reach about 10
MAX_VALUES = 100_000
MAX_MODULES = 100_000
MAX_NUMBER = 1 << 128  # beyond it a number may take long to print
MAX_TEXT = 1 << 20
MAX_KEY = 200
MAX_ANCHOR_NUMBERS = 1000
PROFILER_BUFFERS = ("total_ops", "total_params")  # left behind by a FLOPs counter, not part of the model
WRAPPERS = ("DataParallel", "DistributedDataParallel")
WRAPPER_PREFIXES = ("module.", "_orig_mod.")
WEIGHT_ENTRIES = ("ema_state_dict", "model_state_dict", "state_dict", "ema", "model", "weights")


@dataclass
class UpstreamModel:
    """What a pickled detector says about itself, as plain values and tensors.

    Attributes:
        family: "yolov5", "yolov7", "yolov8" or "mobile".
        state_dict: float32, keys and order as upstream's `state_dict()`.
        anchors: pixels, one list [w, h, w, h, ...] a level; None for an anchor-free head.
        structure: what PyTorch's layers in it do, by their path.
        facts: what the file says of itself, for a person to read.
        img_size: of the training's images; None where the file does not say.
    """

    family: str
    head: str
    yaml: dict[str, Any]
    state_dict: dict[str, torch.Tensor]
    names: list[str]
    nc: int
    stride: list[float]
    anchors: list[list[float]] | None
    hyp: dict[str, Any]
    structure: dict[str, Facts]
    facts: dict[str, str]
    img_size: int | None


def find_models(content: Any, where: str) -> tuple[StandIn | None, StandIn | None]:
    """The averaged and the live model of a checkpoint's content, either of which may be absent.

    Raises:
        UserError: the content holds no pickled model.
    """
    if isinstance(content, StandIn):
        return None, _unwrapped(content)
    if not isinstance(content, Mapping):
        raise UserError(f"{where} holds a {type(content).__name__}, not a checkpoint; give a .pt file of a training")
    ema, model = (_unwrapped(content.get(key)) for key in ("ema", "model"))
    if ema or model:
        return ema, model
    if plain_weights(content) is not None:
        raise UserError(
            f"{where} holds weights without an architecture (a plain state_dict); give the training's .pt file, or its "
            "architecture too: `--cfg` in a training, `python -m checkpoints convert IN OUT --cfg CFG` otherwise"
        )
    keys = ", ".join(printable(key)[:30] for key in list(content)[:8]) or "nothing"
    raise UserError(
        f"{where} holds no YOLO model (found: {keys}); give a .pt file of a YOLOv5, YOLOv7 or YOLOv8 training"
    )


def _unwrapped(model: Any) -> StandIn | None:
    """A pickled model without what spreads it over several GPUs."""
    if not isinstance(model, StandIn):
        return None
    inner = children(model).get("module") if model.short_name in WRAPPERS else None
    return inner or model


def plain_weights(content: Any) -> dict[str, torch.Tensor] | None:
    """The weights of a file that holds a state dict, bare or under one of the usual keys; None where it holds none."""
    if not isinstance(content, Mapping):
        return None
    for holder in (content, *(content.get(key) for key in WEIGHT_ENTRIES)):
        if isinstance(holder, Mapping) and holder and all(isinstance(v, torch.Tensor) for v in holder.values()):
            return {_unprefixed(printable(key)): tensor for key, tensor in holder.items()}
    return None


def _unprefixed(key: str) -> str:
    for prefix in WRAPPER_PREFIXES:
        key = key.removeprefix(prefix)
    return key


def read_model(model: StandIn, entries: Mapping[str, Any], classes: set[str], where: str, size: int) -> UpstreamModel:
    """Plain values and tensors of a pickled detector.

    Args:
        model: the stand-in of the whole model.
        entries: the file's top level.
        classes: class names found in the file.
        where: the file, for error messages.
        size: bytes of the file; bounds the size of the state dict.

    Raises:
        UserError: not a detector of a supported family, or the tree contradicts itself.
    """
    refuse_other_models(model, where)
    layers = children(model).get("model")
    modules = children(layers) if isinstance(layers, StandIn) else {}
    if not modules:
        raise UserError(f"{where} holds a {model.class_name} without layers; fetch the file again")
    head = list(modules.values())[-1]
    named = {module.short_name for _, module in walk(model, where)}
    family = family_of(head, isinstance(children(head).get("m"), StandIn), named, where)
    yaml = _yaml(model, where)
    nc = class_count(head.attributes.get("nc", model.attributes.get("nc", yaml.get("nc"))), where)
    stride = numbers(model.attributes.get("stride", head.attributes.get("stride")))
    activation = _activation(model, yaml, where)
    if activation not in (None, FAMILIES[family].activation or "nn.SiLU()"):
        yaml.setdefault("activation", activation)
    tensors = _with_neutral_implicit(state_dict(model, where, size), head, f"model.{list(modules)[-1]}.")
    hyp = _hyp(model)
    return UpstreamModel(
        family=family,
        head=head.short_name,
        yaml={**yaml, "nc": nc, "family": family},
        state_dict={key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()},
        names=class_names(model.attributes.get("names"), nc),
        nc=nc,
        stride=stride,
        anchors=_anchors(head, stride),
        hyp=hyp,
        structure=_structure(model, where),
        facts=file_facts(entries, tensors) | {"release": guess_release(entries, model, head, family, classes)},
        img_size=image_size(entries, hyp),
    )


def state_dict(model: StandIn, where: str, file_size: int) -> dict[str, torch.Tensor]:
    """The parameters and persistent buffers of a stand-in tree, as stored, by upstream's keys and order."""
    tensors: dict[str, torch.Tensor] = {}
    elements_left = file_size  # weights may be shared, but not without end; they have two bytes or more
    for prefix, module in walk(model, where):
        for name, tensor in tensor_entries(module):
            if not isinstance(tensor, torch.Tensor):
                raise UserError(f"{where}: {printable(prefix + name)} is not a tensor; fetch the file again")
            elements_left -= tensor.numel()
            if elements_left < 0:
                raise UserError(f"{where}: its tensors repeat themselves beyond the size of the file; it is malicious")
            tensors[f"{prefix}{name}"] = tensor
    return tensors


def _with_neutral_implicit(tensors: dict[str, torch.Tensor], head: StandIn, prefix: str) -> dict[str, torch.Tensor]:
    """Implicit layers that do nothing, where upstream has folded them into a head and left their values beside it.

    A folded head is known by the `forward` that was put in place of its own.
    """
    if not isinstance(head.attributes.get("forward"), StandIn):
        return tensors
    neutral = {f"{prefix}ia.": torch.zeros_like, f"{prefix}im.": torch.ones_like}
    return {
        key: next((fill(tensor) for start, fill in neutral.items() if key.startswith(start)), tensor)
        for key, tensor in tensors.items()
    }


def tensor_entries(module: StandIn) -> Iterator[tuple[str, Any]]:
    """Names and values of a module's own parameters and persistent buffers."""
    kept_out = module.attributes.get("_non_persistent_buffers_set")
    left_out = {*PROFILER_BUFFERS, *(kept_out if isinstance(kept_out, set | frozenset) else ())}
    for table in ("_parameters", "_buffers"):
        entries = module.attributes.get(table)
        for name, value in entries.items() if isinstance(entries, Mapping) else ():
            if value is not None and name not in left_out:
                yield printable(name), value


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
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            raise ValueError("a text too long")
        return value
    if isinstance(value, int):
        if abs(value) > MAX_NUMBER:
            raise ValueError("a number too large")
        return value
    if isinstance(value, Mapping):
        return {_plain_key(key): _plain(item, depth - 1, left) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, depth - 1, left) for item in value]
    if isinstance(value, np.ndarray | torch.Tensor):
        left[0] -= value.size if isinstance(value, np.ndarray) else value.numel()
        if left[0] < 0:
            raise ValueError("too many")
        return value.tolist() if math.prod(value.shape) else []  # else a list for each of (1 << 40, 0) rows
    if isinstance(value, StandIn) and value.short_name in ("IterableSimpleNamespace", "SimpleNamespace", "Namespace"):
        return _plain(value.attributes, depth - 1, left)
    return repr(value) if isinstance(value, StandIn) else shown(value)


def _plain_key(key: Any) -> int | str:
    if isinstance(key, str | bytes) and len(key) > MAX_KEY:
        raise ValueError("a key too long")
    return key if isinstance(key, int | str) else str(key)


def walk(model: StandIn, where: str) -> Iterator[tuple[str, StandIn]]:
    """Every module with the prefix of its keys, a module before its children, as `nn.Module.state_dict` goes."""
    stack, met = [("", model, 0)], 0
    while stack:
        prefix, module, depth = stack.pop()
        met += 1
        if depth > MAX_DEPTH or met > MAX_MODULES:
            raise UserError(f"{where}: its modules are nested without end; it is damaged or malicious")
        yield prefix, module
        for name, child in reversed(children(module).items()):
            stack.append((f"{prefix}{printable(name)}.", child, depth + 1))


def children(module: StandIn) -> dict[str, StandIn]:
    """The modules directly inside a stand-in."""
    held = module.attributes.get("_modules")
    if not isinstance(held, Mapping):
        return {}
    return {str(name): child for name, child in held.items() if isinstance(child, StandIn)}


def _structure(model: StandIn, where: str) -> dict[str, Facts]:
    facts = ((prefix.removesuffix("."), pickled_facts(module)) for prefix, module in walk(model, where))
    return {path: found for path, found in facts if found is not None}


def _activation(model: StandIn, yaml: Mapping[str, Any], where: str) -> str | None:
    """The activation of every `Conv`, as a yaml writes it: it may come from changed code instead of the yaml."""
    blocks = (children(module).get("act") for _, module in walk(model, where) if module.short_name == "Conv")
    return default_activation([*yaml["backbone"], *yaml["head"]], (pickled_facts(act) for act in blocks if act))


def _yaml(model: StandIn, where: str) -> dict[str, Any]:
    found = model.attributes.get("yaml", model.attributes.get("md"))
    if not isinstance(found, Mapping) or not found.get("backbone"):
        raise UserError(f"{where}: the model has no architecture (no yaml in it); it cannot be built from this file")
    yaml = plain_entry({key: value for key, value in found.items() if key in KNOWN_KEYS}, where)
    check_architecture(yaml, where)
    return yaml


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


def class_count(value: Any, where: str) -> int:
    """A number of classes that was checked."""
    if type(value) is not int or not 0 < value < 100_000:
        raise UserError(f"{where} does not say how many classes it has; it is damaged")
    return value


def numbers(value: Any) -> list[float]:
    """The few numbers of a list or a tensor, such as strides; none where it holds something else."""
    if isinstance(value, torch.Tensor) and value.numel() <= 16:
        return [float(v) for v in value.flatten().tolist()]
    items = value if isinstance(value, list | tuple) and len(value) <= 16 else ()
    return [float(v) for v in items if isinstance(v, int | float) and abs(v) < MAX_NUMBER]


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
    if anchors.dim() != 3 or len(anchors) != len(stride) or anchors.numel() > MAX_ANCHOR_NUMBERS:
        return None
    pixels = anchors.float() * torch.tensor(stride).view(-1, 1, 1)  # (num_levels, na, 2)
    return [level.flatten().tolist() for level in pixels]
