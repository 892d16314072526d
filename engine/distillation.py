"""From a recipe and a teacher's file to the distiller that plugs into the training loop."""

from __future__ import annotations

from typing import Any

import torch

from distill import Distiller, HeadSpec, KDSchedule
from engine.checkpoint import load_model
from engine.config import Hyp
from models.yolo import Model
from utils.errors import UsageError, UserError
from utils.logging import LOGGER
from utils.paths import existing_file, file_hash

RECIPES = "hyp/distill.*.yaml"


def head_spec(model: Model) -> HeadSpec:
    """A model's head described by values: what an output loss needs to know of it."""
    head = model.head
    strides = [float(s) for s in model.stride]
    anchors = None
    if hasattr(head, "anchors"):
        scale = torch.tensor(strides).view(-1, 1, 1)
        anchors = head.anchors.detach().float().cpu() * scale  # (levels, anchors, 2) pixels
    return HeadSpec(
        kind="anchor" if anchors is not None else "dfl",
        num_classes=int(model.nc),
        strides=tuple(strides),
        anchors=anchors,
        names=tuple(model.names),
    )


def head_inputs(model: Model) -> list[int]:
    """Indices of the layers that feed the head, in the order of its levels."""
    sources = model.head.f
    indices = [sources] if isinstance(sources, int) else list(sources)
    last = len(model.model) - 1
    return [index if index >= 0 else last + index for index in indices][: len(model.stride)]


def kd_layers(value: Any, model: Model, key: str) -> list[int]:
    """Layer indices from the hyper-parameter file: a list, or "auto" for the layers that feed the head."""
    if value in (None, "auto"):
        return head_inputs(model)
    if isinstance(value, int) and not isinstance(value, bool):
        return [value]
    if not isinstance(value, list) or not all(isinstance(v, int) and not isinstance(v, bool) for v in value):
        raise UserError(f"{key} must be auto or a list of layer indices such as [17, 20, 23], found {value!r}")
    return value


def build_distiller(
    student: Model, teacher_weights: str, hyp: Hyp, image_size: int, device: torch.device
) -> tuple[Distiller, dict[str, Any]]:
    """Loads the teacher, pairs the layers and builds the losses of a recipe.

    Returns:
        The distiller on the device, and the teacher's path and hash for checkpoints and the manifest.

    Raises:
        UserError: no recipe, or no teacher, or one that is not complete.
        DistillError: student and teacher do not fit each other.
    """
    if not hyp.distills:
        raise UserError(
            f"the hyper-parameter file has no kd_losses: nothing would be distilled; use one of {RECIPES} or add them"
        )
    if not teacher_weights:
        raise UsageError("--teacher-weights is missing: name the teacher's checkpoint")
    path = existing_file(teacher_weights, "--teacher-weights")
    teacher = load_model(path, device=device, fuse=True)
    distiller = Distiller(
        student,
        teacher,
        kd_layers(hyp.student_kd_layers, student, "student_kd_layers"),
        kd_layers(hyp.teacher_kd_layers, teacher, "teacher_kd_layers"),
        hyp.kd_losses,
        KDSchedule(**hyp.kd_schedule) if hyp.kd_schedule else None,
        image_size=image_size,
        student_head=head_spec(student),
        teacher_head=head_spec(teacher),
    ).to(device)
    LOGGER.info(f"teacher: {path}\n{distiller.describe()}")
    return distiller, {"path": str(path), "sha256": file_hash(path)}
