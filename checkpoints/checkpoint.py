"""The only reader and writer of .pt files.

Own files hold tensors and plain values only (docs/checkpoints.md), and `torch.load(..., weights_only=True)` reads them.
Here they are read as upstream's files of YOLOv5, YOLOv7 and YOLOv8 are, by the restricted unpickler, which checks sizes
besides. Reading a file never executes code from it.

    python -m checkpoints inspect FILE        what is in a file
    python -m checkpoints convert IN OUT      an upstream file in our form
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from checkpoints.architecture import check_architecture
from checkpoints.exported import refuse_exported
from checkpoints.extent import check_extent
from checkpoints.fitting import filled_model, within_weights
from checkpoints.pickled.archive import damaged
from checkpoints.pickled.unpickle import Unpickled, unpickle
from checkpoints.transfer import TransferReport, transfer_weights
from checkpoints.upstream.read import (
    class_count,
    find_models,
    numbers,
    pixel_anchors,
    plain_entry,
    plain_weights,
    read_model,
    state_dict,
)
from checkpoints.upstream.structure import Facts, check_structure
from checkpoints.write import FORMAT, FORMAT_VERSION, save_checkpoint, write_archive
from utils.errors import UserError
from utils.names import class_names
from utils.text import printable

if TYPE_CHECKING:
    from models.yolo import Model

__all__ = [
    "Checkpoint",
    "TransferReport",
    "load_checkpoint",
    "load_model",
    "save_checkpoint",
    "strip_checkpoint",
    "to_payload",
    "transfer_weights",
    "write_archive",
]

MODEL_KEYS = ("yaml", "state_dict", "names", "nc", "stride", "family")
MAX_EPOCH = 1 << 31
MAX_KEY = 200  # characters of a tensor's name
# What a value of a wrong kind in a wrong place can raise while a file's content is interpreted.
CONTENT_ERRORS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
DERIVED_TENSORS = ("anchor_grid",)  # stored by some versions of upstream; it follows from the anchors


@dataclass
class Checkpoint:
    """A checkpoint file's contents, whoever wrote it.

    Attributes:
        path: the file.
        kind: "own", "upstream", or "weights" for a state dict without an architecture.
        family: "yolov5", "yolov7", "yolov8" or "mobile"; "" when an own file does not say.
        yaml: the architecture, enough to build the model.
        state_dict: float32 weights; the averaged ones (EMA) where the file has both.
        names: class names.
        nc: number of classes.
        stride: strides of the head's levels, in pixels.
        anchors: pixels, one list a level; None for an anchor-free head or where the file does not say.
        ema: the averaged weights where the file keeps them apart from the live ones.
        raw_state_dict: the live weights where the file has them.
        hyp: hyper-parameters as the file carries them.
        epoch: the last epoch trained, from 0; -1 where unknown.
        best_fitness: None where unknown.
        optimizer: its state dict, None in a finished run's file.
        training: everything else of a run that can be resumed; empty in a finished run's file and in upstream's.
        extra: further entries of an own file, such as metrics and teacher.
        model_extra: further entries of an own file's model.
        classes: class names found in an upstream file.
        head: class name of an upstream file's head.
        img_size: of the training's images; None where the file does not say.
        structure: what PyTorch's layers in an upstream file do, by their path.
        facts: what an upstream file says of itself besides, for a person to read.
    """

    path: Path
    kind: str
    family: str
    yaml: dict[str, Any]
    state_dict: dict[str, torch.Tensor]
    names: list[str]
    nc: int
    stride: list[float]
    anchors: list[list[float]] | None = None
    ema: dict[str, torch.Tensor] | None = None
    raw_state_dict: dict[str, torch.Tensor] | None = None
    hyp: dict[str, Any] = field(default_factory=dict)
    epoch: int = -1
    best_fitness: float | None = None
    optimizer: dict[str, Any] | None = None
    training: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    model_extra: dict[str, Any] = field(default_factory=dict)
    classes: set[str] = field(default_factory=set)
    head: str = ""
    img_size: int | None = None
    structure: dict[str, Facts] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)


def load_checkpoint(path: str | Path, allow_nan: bool = False, architecture: bool = True) -> Checkpoint:
    """Reads a checkpoint of ours or of upstream, without executing anything in it.

    Args:
        path: the file.
        allow_nan: return weights that hold NaN or infinite values instead of refusing them.
        architecture: refuse a file of weights alone; without it, such a file's checkpoint has an empty yaml and no
            names.

    Raises:
        UserError: the file is missing, not a checkpoint, not understood, refused, or its weights are not finite.
    """
    refuse_exported(path)
    return interpret(Path(path), unpickle(path), allow_nan, architecture)


def interpret(path: Path, unpickled: Unpickled, allow_nan: bool = False, architecture: bool = True) -> Checkpoint:
    """What `load_checkpoint` makes of a file that has been read."""
    where = f"checkpoint {str(path)!r}"
    try:
        checkpoint = _interpreted(path, unpickled, architecture, where)
    except CONTENT_ERRORS as error:
        raise damaged(path, f"its entries are not those of a checkpoint ({type(error).__name__})") from error
    if not allow_nan and (broken := not_finite(checkpoint.state_dict)):
        kind = "NaN" if checkpoint.state_dict[broken[0]].isnan().any() else "infinite values"
        raise UserError(
            f"{where} holds {kind} in {len(broken)} of {len(checkpoint.state_dict)} tensors (first: {broken[0]}): "
            "that training diverged; use an earlier checkpoint"
        )
    return checkpoint


def _interpreted(path: Path, unpickled: Unpickled, architecture: bool, where: str) -> Checkpoint:
    content = unpickled.content
    mark = content.get("format") if isinstance(content, Mapping) else None
    if isinstance(mark, str) and mark == FORMAT:
        check_extent(content, path.stat().st_size, where)
        return _own(path, unpickled, where)
    weights = None if architecture else plain_weights(content)
    if weights is None:
        return _upstream(path, unpickled, where)
    check_extent(weights, path.stat().st_size, where)
    return Checkpoint(path, "weights", "", {}, _float32(weights), [], 0, [])


def not_finite(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """The keys of tensors that hold NaN or infinite values."""
    extremes = ((key, tensor.aminmax()) for key, tensor in tensors.items() if tensor.numel())
    return [key for key, (low, high) in extremes if not (low.isfinite() and high.isfinite())]  # NaN is both of them


def _own(path: Path, unpickled: Unpickled, where: str) -> Checkpoint:
    content = unpickled.content
    version = content.get("format_version")
    if not isinstance(version, int) or not 0 < version <= FORMAT_VERSION:
        shown = version if isinstance(version, int) and 0 < version < MAX_EPOCH else "unknown"
        raise UserError(f"{where} has format version {shown}, newer than {FORMAT_VERSION}; update this software")
    model = content.get("model")
    hyp, training = ({} if content.get(key) is None else content[key] for key in ("hyp", "training"))
    if (
        unpickled.classes
        or not isinstance(model, dict)
        or not isinstance(model.get("yaml"), dict)
        or "nc" not in model
        or not _is_state_dict(model.get("state_dict"))
        or not isinstance(hyp, dict)
        or not isinstance(training, dict)
    ):
        raise UserError(f"{where} is damaged: its entries are not those of a checkpoint of ours; use another copy")
    yaml, hyp = plain_entry(model["yaml"], where), plain_entry(hyp, where)
    check_architecture(yaml, where)
    known = ("format", "format_version", "model", "hyp", "epoch", "best_fitness", "training")
    nc, stride = class_count(model["nc"], where), numbers(model.get("stride"))
    anchors = (pixel_anchors(t, stride) for key, t in model["state_dict"].items() if key.endswith(".anchors"))
    return Checkpoint(
        path=path,
        kind="own",
        family=printable(
            next((text for text in (model.get("family"), yaml.get("family")) if isinstance(text, str)), "")
        ),
        yaml=yaml,
        state_dict=_float32(model["state_dict"]),
        names=class_names(model.get("names"), nc),
        nc=nc,
        stride=stride,
        anchors=next(anchors, None),
        raw_state_dict=training.get("state_dict"),
        hyp=hyp,
        **_progress(content),
        optimizer=training.get("optimizer"),
        training=dict(training),
        extra={key: value for key, value in content.items() if key not in known},
        model_extra={key: value for key, value in model.items() if key not in MODEL_KEYS},
    )


def _upstream(path: Path, unpickled: Unpickled, where: str) -> Checkpoint:
    content = unpickled.content
    size = path.stat().st_size
    ema, live = find_models(content, where)
    entries = content if isinstance(content, Mapping) else {}
    chosen = read_model(ema or live, entries, unpickled.classes, where, size)  # type: ignore[arg-type]
    raw = _float32(state_dict(live, where, size)) if live and ema else chosen.state_dict if live else None
    optimizer = entries.get("optimizer")
    return Checkpoint(
        path=path,
        kind="upstream",
        family=chosen.family,
        yaml=chosen.yaml,
        state_dict=chosen.state_dict,
        names=chosen.names,
        nc=chosen.nc,
        stride=chosen.stride,
        anchors=chosen.anchors,
        ema=chosen.state_dict if ema else None,
        raw_state_dict=raw,
        hyp=chosen.hyp,
        **_progress(entries),
        optimizer=optimizer if isinstance(optimizer, dict) else None,
        classes=unpickled.classes,
        head=chosen.head,
        img_size=chosen.img_size,
        structure=chosen.structure,
        facts=chosen.facts,
    )


def _progress(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Epoch and best fitness of a file; upstream keeps the latter as a number or as an array of one."""
    epoch, fitness = entries.get("epoch"), entries.get("best_fitness")
    if isinstance(fitness, np.ndarray | torch.Tensor) and math.prod(fitness.shape) == 1:
        fitness = fitness.item()
    return {
        "epoch": epoch if isinstance(epoch, int) and -1 <= epoch <= MAX_EPOCH else -1,
        "best_fitness": float(fitness) if isinstance(fitness, int | float) and abs(fitness) < MAX_EPOCH else None,
    }


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(tensor, torch.Tensor) and isinstance(key, str) and len(key) <= MAX_KEY and key.isprintable()
        for key, tensor in value.items()
    )


def _float32(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}


def to_payload(checkpoint: Checkpoint, half: bool = False) -> dict[str, Any]:
    """A checkpoint as the payload of a finished run's own file: the averaged weights and what describes them.

    Args:
        checkpoint: of any kind.
        half: store floating-point weights in half precision.
    """
    dtype = torch.float16 if half else torch.float32
    weights = {k: t.to(dtype) if t.is_floating_point() else t for k, t in checkpoint.state_dict.items()}
    return {
        **checkpoint.extra,
        "model": {
            **checkpoint.model_extra,
            "yaml": checkpoint.yaml,
            "state_dict": weights,
            "names": checkpoint.names,
            "nc": checkpoint.nc,
            "stride": checkpoint.stride,
            "family": checkpoint.family,
        },
        "hyp": checkpoint.hyp,
        "epoch": checkpoint.epoch,
        "best_fitness": checkpoint.best_fitness,
    }


def strip_checkpoint(path: str | Path, half: bool = False) -> None:
    """Takes everything out of an own file that only a resumed run needs: optimizer, adapters, live weights.

    Args:
        path: rewritten in place, atomically. A file that is stripped already stays as it is.
        half: store the weights in half precision, which halves the file.
    """
    checkpoint = load_checkpoint(path)
    if checkpoint.kind != "own":
        raise UserError(f"checkpoint {str(path)!r} is an upstream file; convert it first (checkpoints convert)")
    if checkpoint.training or half:
        save_checkpoint(path, to_payload(checkpoint, half))


def load_model(path: str | Path, device: str | torch.device = "cpu", fuse: bool = True) -> Model:
    """A checkpoint's model, complete, in evaluation mode.

    Args:
        path: a checkpoint of ours or of upstream.
        device: where the model goes.
        fuse: fold BatchNorm into the convolutions: same outputs, faster, and not to be trained.

    Raises:
        UserError: the file is not understood, or a tensor of the model is not in it or has another shape.
    """
    model = fitted_model(load_checkpoint(path)).to(device).eval()
    return model.fuse() if fuse else model


def fitted_model(checkpoint: Checkpoint) -> Model:
    """The model of a checkpoint with its weights, as it would be trained on; folded where the file's was.

    A model of an upstream file whose layers are narrower than its rows say, as after pruning, gets the channel plan.

    Raises:
        UserError: a tensor is missing, left over or of another shape, or a layer of the file does something else.
    """
    from models.yolo import with_channel_plan

    where = f"checkpoint {str(checkpoint.path)!r}"
    upstream, weights = checkpoint.kind == "upstream", checkpoint.state_dict
    model, report = filled_model(checkpoint.yaml, checkpoint.nc, weights, where, full_width=upstream)
    narrower = all(len(theirs) == len(ours) for _, theirs, ours in report.mismatched)
    if report.mismatched and narrower and upstream:
        with within_weights(weights, where, pruned=True):
            planned = with_channel_plan(checkpoint.yaml, weights)
        model, report = filled_model(planned, checkpoint.nc, weights, where, full_width=True)
    unused = [key for key in report.unused if not key.endswith(DERIVED_TENSORS)]
    if not report.complete or unused:
        raise UserError(f"{where} does not fill the model that it describes; {_first_faults(report)}")
    check_structure(model, checkpoint.structure, where)
    model.names = list(checkpoint.names)
    return model


def fitted_yaml(checkpoint: Checkpoint) -> dict[str, Any]:
    """The architecture of a checkpoint, with the channel plan that the weights of an upstream file may need.

    Raises:
        UserError: as `fitted_model`.
    """
    return fitted_model(checkpoint).yaml if checkpoint.kind == "upstream" else checkpoint.yaml


def _first_faults(report: TransferReport) -> str:
    """One line with the tensors that do not fit."""
    return "; ".join(line.strip() for line in report.describe(most=3).splitlines())
