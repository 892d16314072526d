"""From a recipe and a teacher's file to the distiller that plugs into the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from distill import Distiller, HeadSpec
from engine.checkpoint import load_model
from engine.config import Hyp, TrainOptions
from models.heads.anchor import AnchorHead
from models.yolo import Model
from utils.errors import UsageError, UserError
from utils.logging import LOGGER
from utils.paths import existing_file, file_hash

RECIPES = "hyp/distill.*.yaml"


def head_spec(model: Model) -> HeadSpec:
    """A model's head described by values: what an output loss needs to know of it."""
    strides = tuple(int(s) for s in model.stride)
    anchors = model.head.anchors_px if isinstance(model.head, AnchorHead) else None
    kind = "anchor_free" if anchors is None else "anchor"
    return HeadSpec(kind, int(model.nc), strides, anchors, tuple(model.names))


def adopt_anchors(student: Model, teacher: Model, hyp: Hyp) -> None:
    """Gives the student the teacher's anchors where box logits are compared: else they would mean other boxes."""
    settings = hyp.kd_losses.get("output") or {}  # a loss without keywords has their defaults
    compared = "output" in hyp.kd_losses and isinstance(settings, Mapping)
    mine, theirs = student.head, teacher.head
    if not compared or not settings.get("weight", 1.0) or not settings.get("box", 1.0):
        return
    if not isinstance(mine, AnchorHead) or not isinstance(theirs, AnchorHead):
        return
    anchors = theirs.anchors_px.cpu()
    if mine.anchors_px.shape == anchors.shape and not torch.allclose(mine.anchors_px.cpu(), anchors, rtol=1e-3):
        mine.set_anchors(anchors)
        LOGGER.info("the student takes the teacher's anchors, so that their outputs can be compared")


def check_recipe(options: TrainOptions, hyp: Hyp) -> None:
    """Refuses a distillation without recipe or teacher before anything else takes its time.

    Raises:
        UsageError: no teacher is named, or it is the very file that the student starts as.
        UserError: the hyper-parameter file has no recipe, or the teacher's file is not there.
    """
    if not hyp.distills:
        raise UserError(
            f"hyper-parameter file {options.hyp!r} has no kd_losses: nothing would be distilled; "
            f"use one of {RECIPES} or add them"
        )
    if not options.teacher_weights:
        raise UsageError("--teacher-weights is missing: name the teacher's checkpoint")
    teacher = existing_file(options.teacher_weights, "--teacher-weights")
    if options.weights and not options.cfg and teacher.resolve() == Path(options.weights).resolve():
        raise UsageError(
            f"--weights and --teacher-weights are both {options.weights!r}: the student would be its own teacher; "
            "name a smaller student with --cfg or --weights"
        )


def build_distiller(
    student: Model, teacher_weights: str, hyp: Hyp, image_size: int, device: torch.device
) -> tuple[Distiller, dict[str, Any]]:
    """Loads the teacher, pairs the layers and builds the losses of a recipe.

    Returns:
        The distiller on the device, and the teacher's path and hash for checkpoints and the manifest.

    Raises:
        UserError: the teacher is no complete model.
        DistillError: student and teacher do not fit each other.
    """
    path = Path(teacher_weights)
    teacher = load_model(path, device=device, fuse=True)
    adopt_anchors(student, teacher, hyp)
    distiller = Distiller(
        student,
        teacher,
        "auto" if hyp.student_kd_layers is None else hyp.student_kd_layers,
        "auto" if hyp.teacher_kd_layers is None else hyp.teacher_kd_layers,
        hyp.kd_losses,
        hyp.kd_schedule,
        image_size=image_size,
        student_head=head_spec(student),
        teacher_head=head_spec(teacher),
    )
    LOGGER.info(f"teacher: {path}\n{distiller.describe()}")
    return distiller, {"path": str(path), "sha256": file_hash(path)}
