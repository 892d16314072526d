"""The only reader and writer of .pt files.

Own files hold tensors and plain values only (docs/checkpoints.md), and `torch.load(..., weights_only=True)` reads them.
Here they are read as upstream's files of YOLOv5, YOLOv7 and YOLOv8 are, by the restricted unpickler, which checks sizes
besides. Reading a file never executes code from it.

    python -m engine.checkpoint inspect FILE        what is in a file
    python -m engine.checkpoint convert IN OUT      an upstream file in our form
"""

from __future__ import annotations

import math
import os
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from engine.transfer import TransferReport, transfer_weights
from engine.unpickle import Unpickled, unpickle
from engine.upstream import MAX_DEPTH, class_names, find_models, pixel_anchors, plain_entry, read_model, state_dict
from utils.errors import UserError
from utils.paths import replacing

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

FORMAT = "yolo-distill"
FORMAT_VERSION = 1
MODEL_KEYS = ("yaml", "state_dict", "names", "nc", "stride", "family")
DERIVED_TENSORS = ("anchor_grid",)  # stored by some versions of upstream; it follows from the anchors


@dataclass
class Checkpoint:
    """A checkpoint file's contents, whoever wrote it.

    Attributes:
        path: the file.
        kind: "own" or "upstream".
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


def load_checkpoint(path: str | Path, allow_nan: bool = False) -> Checkpoint:
    """Reads a checkpoint of ours or of upstream, without executing anything in it.

    Args:
        path: the file.
        allow_nan: return weights that hold NaN instead of refusing them.

    Raises:
        UserError: the file is missing, not a checkpoint, not understood, refused, or its weights hold NaN.
    """
    unpickled = unpickle(path)
    path = Path(path)
    where = f"checkpoint {str(path)!r}"
    content = unpickled.content
    mark = content.get("format") if isinstance(content, Mapping) else None
    if isinstance(mark, str) and mark == FORMAT:
        checkpoint = _own(path, unpickled, where)
    else:
        checkpoint = _upstream(path, unpickled, where)
    if not allow_nan:
        broken = [key for key, tensor in checkpoint.state_dict.items() if tensor.isnan().any()]
        if broken:
            raise UserError(
                f"{where} holds NaN in {len(broken)} of {len(checkpoint.state_dict)} tensors (first: {broken[0]}): "
                "that training diverged; use an earlier checkpoint"
            )
    return checkpoint


def _own(path: Path, unpickled: Unpickled, where: str) -> Checkpoint:
    content = unpickled.content
    version = content.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise UserError(f"{where} has format version {version}, newer than {FORMAT_VERSION}; update this software")
    model, training = content.get("model"), content.get("training") or {}
    if (
        unpickled.classes
        or not isinstance(model, dict)
        or not isinstance(model.get("yaml"), dict)
        or not _is_state_dict(model.get("state_dict"))
        or not isinstance(model.get("nc"), int)
        or not isinstance(training, dict)
    ):
        raise UserError(f"{where} is damaged: its entries are not those of a checkpoint of ours; use another copy")
    yaml, hyp = plain_entry(model["yaml"], where), plain_entry(content.get("hyp") or {}, where)
    known = ("format", "format_version", "model", "hyp", "epoch", "best_fitness", "training")
    nc, stride = model["nc"], [float(s) for s in model.get("stride") or ()]
    anchors = (pixel_anchors(t, stride) for key, t in model["state_dict"].items() if key.endswith(".anchors"))
    return Checkpoint(
        path=path,
        kind="own",
        family=str(model.get("family") or yaml.get("family") or ""),
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
    chosen = read_model(ema or live, where, size)  # type: ignore[arg-type]
    raw = state_dict(live, where, size) if live and ema else chosen.state_dict if live else None
    entries = content if isinstance(content, Mapping) else {}
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
    )


def _progress(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Epoch and best fitness of a file; upstream keeps the latter as a number or as an array of one."""
    epoch, fitness = entries.get("epoch"), entries.get("best_fitness")
    if isinstance(fitness, np.ndarray | torch.Tensor) and math.prod(fitness.shape) == 1:
        fitness = fitness.item()
    return {
        "epoch": epoch if isinstance(epoch, int) else -1,
        "best_fitness": float(fitness) if isinstance(fitness, int | float) else None,
    }


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(tensor, torch.Tensor) for tensor in value.values())


def _float32(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}


def save_checkpoint(path: str | Path, payload: Mapping[str, Any]) -> None:
    """Writes an own checkpoint so that the file is always either the old one or the complete new one.

    The format and its version are added to the payload. Tensors are stored on the CPU and without the rest of a storage
    that they are a view of.

    Args:
        path: the file; its folder must exist.
        payload: see docs/checkpoints.md; tensors and plain values only.

    Raises:
        UserError: a value is neither a tensor nor plain (its key is named), or the file cannot be written.
    """
    write_archive(Path(path), _storable({"format": FORMAT, "format_version": FORMAT_VERSION, **payload}, "", ()))


def write_archive(path: Path, content: Any, pickle_module: Any = pickle) -> None:
    """Writes a value as PyTorch's container, so that the file is always either the old one or the complete new one.

    Args:
        path: the file; its folder must exist.
        content: anything that the pickler of `pickle_module` can write.
        pickle_module: as in `torch.save`.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        with replacing(path, "wb") as stream:
            torch.save(content, stream, pickle_module=pickle_module)
            stream.flush()
            os.fsync(stream.fileno())  # or a power cut could leave neither the old file nor the new one
    except (OSError, RuntimeError) as error:  # PyTorch makes a RuntimeError of a full disk's OSError
        cause = error if isinstance(error, OSError) else error.__context__
        reason = getattr(cause, "strerror", None) or str(error).splitlines()[0]
        raise UserError(
            f"checkpoint {str(path)!r} cannot be written: {reason}; free disk space or choose another --project "
            "(an earlier file of that name is unchanged)"
        ) from error


def _storable(value: Any, key: str, parents: tuple[int, ...]) -> Any:
    """`value` as it is written: tensors on the CPU, everything else plain."""
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu()
        return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size() else tensor
    if id(value) in parents or len(parents) > MAX_DEPTH:
        raise UserError(f"checkpoint entry {key[:80]!r} contains itself, or is nested too deeply; store plain values")
    parents = (*parents, id(value))
    if type(value) in (dict, OrderedDict):
        for name in value:
            if type(name) not in (str, int, float, bool):
                raise UserError(
                    f"checkpoint entry {key!r} has the key {name!r} of type {type(name).__name__}; use text"
                )
        return {name: _storable(item, f"{key}.{name}" if key else str(name), parents) for name, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_storable(item, f"{key}[{i}]", parents) for i, item in enumerate(value))
    kind = f"{type(value).__module__}.{type(value).__name__}"
    raise UserError(f"checkpoint entry {key!r} is a {kind}; only tensors and plain values are stored")


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
        raise UserError(f"checkpoint {str(path)!r} is an upstream file; convert it first (engine.checkpoint convert)")
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
    from models.yolo import Model

    checkpoint = load_checkpoint(path)
    model = Model(checkpoint.yaml, nc=checkpoint.nc)
    if not any(".bn." in key for key in checkpoint.state_dict):  # saved after BatchNorm was folded away
        model.fuse()
    report = transfer_weights(model, checkpoint.state_dict)
    unused = [key for key in report.unused if not key.endswith(DERIVED_TENSORS)]
    if not report.complete or unused:
        raise UserError(f"checkpoint {str(path)!r} does not fill the model that it describes; {_first_faults(report)}")
    model.names = list(checkpoint.names)
    model.to(device).eval()
    return model.fuse() if fuse else model


def _first_faults(report: TransferReport) -> str:
    """One line with the tensors that do not fit."""
    return "; ".join(line.strip() for line in report.describe(most=3).splitlines())


if __name__ == "__main__":
    from engine.checkpoint_cli import main
    from utils.cli import run_command

    run_command(main)
