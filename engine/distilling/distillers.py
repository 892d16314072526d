"""From a recipe and a teacher's file to the distiller that plugs into the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from checkpoints.checkpoint import load_model
from distill import Distiller, HeadSpec
from distill.context import HEAD_KINDS
from engine.config.hyp import Hyp
from engine.config.options import TrainOptions
from engine.distilling.teachers import OWN_AVERAGE, TeacherPlan, plan_teachers, schedule_values, shared_losses
from models.yolo import Model
from utils.device import select_device
from utils.errors import UsageError, UserError
from utils.logging import LOGGER
from utils.paths import file_hash
from utils.sizes import rounded_size
from utils.text import shown_path

RECIPES = "hyp/distill.*.yaml"


def head_spec(model: Model) -> HeadSpec:
    """A model's head described by values: what an output loss needs to know of it.

    Raises:
        UserError: a head whose outputs no loss can read.
    """
    head = model.head
    if head.kind not in HEAD_KINDS:
        raise UserError(
            f"the head {type(head).__name__} is of the kind {head.kind!r}, which cannot be distilled; "
            "take another model"
        )
    strides = tuple(int(s) for s in model.stride)
    return HeadSpec(head.kind, int(model.nc), strides, head.anchors_px, tuple(model.names), head.bins)


def adopt_anchors(student: Model, teacher: Model, hyp: Hyp) -> bool:
    """Gives the student the teacher's anchors where box logits are compared: else they would mean other boxes.

    Returns:
        Whether the student had others.
    """
    settings = hyp.kd_losses.get("output") or {}  # a loss without keywords has their defaults
    compared = "output" in hyp.kd_losses and isinstance(settings, Mapping)
    mine, theirs = student.head, teacher.head
    amount = settings.get("share", settings.get("weight", 1.0))
    amount = amount.get("box") if isinstance(amount, Mapping) else amount
    if not compared or not amount or not settings.get("box", 1.0):
        return False
    own, anchors = (None if one is None else one.cpu() for one in (mine.anchors_px, theirs.anchors_px))
    if own is None or anchors is None or own.shape != anchors.shape or torch.allclose(own, anchors, rtol=1e-3):
        return False
    mine.set_anchors(anchors)
    return True


def check_recipe(options: TrainOptions, hyp: Hyp) -> None:
    """Refuses a distillation without recipe or teacher before anything else takes its time.

    Raises:
        UsageError: no teacher is named, or it is the very file that the student starts as.
        UserError: the hyper-parameter file has no recipe, or the teacher's file is not there.
    """
    if not hyp.distills:
        raise UserError(
            f"hyper-parameter file {shown_path(options.hyp)} has no kd_losses: nothing would be distilled; "
            f"use one of {RECIPES} or add them"
        )
    if not options.teacher_weights:
        raise UsageError("--teacher-weights is missing: name the teacher's checkpoint")
    start = Path(options.weights).resolve() if options.weights and not options.cfg else None
    for plan in plan_teachers(options, hyp):
        if not plan.is_average and Path(plan.path).resolve() == start:
            raise UsageError(
                f"--weights and --teacher-weights are both {shown_path(options.weights)}: the student would be its own "
                f"teacher; name a smaller student with --cfg or --weights, or --teacher-weights {OWN_AVERAGE}: its own "
                "average"
            )
    schedule_values(options, hyp)


def build_distillers(
    student: Model, options: TrainOptions, hyp: Hyp, device: torch.device, average: Model
) -> tuple[list[Distiller], dict[str, Any]]:
    """Loads the teachers, pairs the layers and builds the losses of a recipe.

    Args:
        student: on its device.
        options: the teachers' files, device and image size, and the size of the training's images.
        hyp: the recipe.
        device: where the student computes.
        average: the moving average of the student, which may itself be asked to teach.

    Returns:
        A distiller on the device for each teacher, and the teachers' paths and hashes for checkpoints and the manifest.

    Raises:
        UserError: a teacher is no complete model, or there are not as many as the recipe describes.
        DistillError: student and teacher do not fit each other.
    """
    plans = plan_teachers(options, hyp)
    distillers = [_build_distiller(student, plan, options, hyp, device, average) for plan in plans]
    facts = [{"path": p.path, "sha256": "" if p.is_average else file_hash(p.path)} for p in plans]
    return distillers, {**facts[0], "more": facts[1:]} if len(facts) > 1 else facts[0]


def _build_distiller(
    student: Model, plan: TeacherPlan, options: TrainOptions, hyp: Hyp, device: torch.device, average: Model
) -> Distiller:
    teacher_device = (
        select_device(options.teacher_device, flag="--teacher-device") if options.teacher_device else device
    )
    teacher = average if plan.is_average else load_model(Path(plan.path), device=teacher_device, fuse=True)
    teacher_size = teacher_image_size(options, teacher)
    if teacher_size is None and not plan.is_average and adopt_anchors(student, teacher, hyp):
        adopt_anchors(average, teacher, hyp)
        LOGGER.info("the student takes the teacher's anchors, so that their outputs can be compared")
    teacher_layers = hyp.teacher_kd_layers if plan.layers is None else plan.layers
    distiller = Distiller(
        student,
        teacher,
        "auto" if hyp.student_kd_layers is None else hyp.student_kd_layers,
        "auto" if teacher_layers is None else teacher_layers,
        shared_losses(hyp.kd_losses, plan.share),
        schedule_values(options, hyp),
        image_size=options.img_size[0],
        student_head=replace(head_spec(student), names=()) if options.single_cls else head_spec(student),
        teacher_head=head_spec(teacher),
        teacher_half=False if plan.is_average else None,  # the average goes on being averaged
        teacher_image_size=teacher_size,
        resize=hyp.kd_resize,
        classes=plan.classes,
        prefix=plan.prefix,
        compiled=options.compile,
    )
    LOGGER.info("\n".join([f"teacher: {plan.path}", distiller.describe(), *distiller.notes]))
    return distiller


def teacher_image_size(options: TrainOptions, teacher: Model) -> int | None:
    """The size of the teacher's images, a multiple of its stride; None where it is the student's."""
    if not options.teacher_img_size:
        return None
    size = rounded_size(options.teacher_img_size, int(max(teacher.stride)), "--teacher-img-size")
    return None if size == options.img_size[0] else size
