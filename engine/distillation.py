"""From a recipe and a teacher's file to the distiller that plugs into the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from distill import Distiller, HeadSpec
from engine.build import rounded_size
from engine.checkpoint import load_model
from engine.config import Hyp, TrainOptions
from models.heads.anchor import AnchorHead
from models.heads.anchor_free import AnchorFreeDetect
from models.yolo import Model
from utils.device import select_device
from utils.errors import UsageError, UserError
from utils.logging import LOGGER
from utils.paths import existing_file, file_hash

RECIPES = "hyp/distill.*.yaml"


def head_spec(model: Model) -> HeadSpec:
    """A model's head described by values: what an output loss needs to know of it."""
    strides = tuple(int(s) for s in model.stride)
    anchors = model.head.anchors_px if isinstance(model.head, AnchorHead) else None
    kind = "anchor_free" if anchors is None else "anchor"
    bins = model.head.reg_max if isinstance(model.head, AnchorFreeDetect) else None
    return HeadSpec(kind, int(model.nc), strides, anchors, tuple(model.names), bins)


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
    student: Model, options: TrainOptions, hyp: Hyp, device: torch.device
) -> tuple[Distiller, dict[str, Any]]:
    """Loads the teacher, pairs the layers and builds the losses of a recipe.

    Args:
        student: on its device.
        options: the teacher's file, device and image size, and the size of the training's images.
        hyp: the recipe.
        device: where the student computes.

    Returns:
        The distiller on the device, and the teacher's path and hash for checkpoints and the manifest.

    Raises:
        UserError: the teacher is no complete model.
        DistillError: student and teacher do not fit each other.
    """
    path = Path(options.teacher_weights)
    other = options.teacher_device
    teacher = load_model(path, device=select_device(other, flag="--teacher-device") if other else device, fuse=True)
    teacher_size = teacher_image_size(options, teacher)
    if teacher_size is None:
        adopt_anchors(student, teacher, hyp)
    distiller = Distiller(
        student,
        teacher,
        "auto" if hyp.student_kd_layers is None else hyp.student_kd_layers,
        "auto" if hyp.teacher_kd_layers is None else hyp.teacher_kd_layers,
        hyp.kd_losses,
        hyp.kd_schedule,
        image_size=options.img_size[0],
        student_head=head_spec(student),
        teacher_head=head_spec(teacher),
        teacher_image_size=teacher_size,
        resize=hyp.kd_resize,
    )
    LOGGER.info("\n".join([f"teacher: {path}", distiller.describe(), *distiller.notes]))
    return distiller, {"path": str(path), "sha256": file_hash(path)}


def teacher_image_size(options: TrainOptions, teacher: Model) -> int | None:
    """The size of the teacher's images, a multiple of its stride; None where it is the student's."""
    if not options.teacher_img_size:
        return None
    size = rounded_size(options.teacher_img_size, int(max(teacher.stride)), "--teacher-img-size")
    return None if size == options.img_size[0] else size
