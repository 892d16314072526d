"""What a student starts as: a part that is cut out of a teacher, where the pair allows it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from checkpoints.checkpoint import load_model
from data.loader import Batch, DetectionLoader
from distill import DistillError, HeadSpec
from distill.classes import match_classes
from engine.config.options import TrainOptions
from engine.distilling.teachers import OWN_AVERAGE
from engine.inference.evaluate import VALIDATION_IOU, evaluate
from models.yolo import Model
from utils.device import images_to_device, random_streams_kept
from utils.errors import UsageError, UserError
from utils.logging import LOGGER
from utils.paths import existing_file, file_hash

if TYPE_CHECKING:
    from pruning import Inheritance

NUM_BATCHES = 12
"""Training batches for Taylor importance and the statistics of BatchNorm."""


@dataclass
class Heritage:
    """A teacher that a student can start as a part of.

    Attributes:
        path: its file.
        teacher: with BatchNorm that is not folded.
        classes: pairs (class of the student, the same class of the teacher).
    """

    path: str
    teacher: Model
    classes: list[tuple[int, int]]


@dataclass
class Start:
    """What a student started as.

    Attributes:
        facts: for the manifest.
        table: what became of each layer, a line each; empty where nothing was inherited.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    table: list[str] = field(default_factory=list)


def check_start(options: TrainOptions, distil: bool) -> None:
    """Refuses flags that ask for two starts, or for one that is not there.

    Raises:
        UsageError: names the flags.
        UserError: the file to inherit from is not there.
    """
    flag = "--inherit" if options.inherit else "--init inherit"
    if options.inherit:
        existing_file(options.inherit, "--inherit")
    if options.init != "inherit" or not (options.inherit or distil):
        return
    if options.weights:
        raise UsageError(f"--weights and {flag} both say what the student starts as; leave one of them out")
    if not options.inherit and not _teachers(options):
        raise UsageError("--init inherit: the student's own average has nothing to pass on; name a teacher's file")


def find_heritage(options: TrainOptions, distil: bool, student: Model) -> Heritage | None:
    """The first teacher that the student can inherit from; None where it starts as it was built.

    Says in one line why there is none, where one was wanted.

    Raises:
        UserError: --init inherit or --inherit asks for it, and the pair does not allow it.
    """
    if options.inherit:
        paths = [options.inherit]
    else:
        paths = _teachers(options) if distil else []
    if options.init == "scratch" or options.weights or not paths:
        return None
    from pruning import PruneError, plan_inheritance

    reasons = []
    with random_streams_kept():
        for path in paths:
            teacher = load_model(path, fuse=False)
            classes, problem = common_classes(student, teacher, options.single_cls)
            try:
                plan_inheritance(student, teacher, classes=classes)
            except PruneError as error:
                reasons.append(f"{path}: {error}")
                continue
            if problem:
                LOGGER.info(f"no class is inherited: {problem}")
            return Heritage(path, teacher, classes)
    _give_up(options, reasons[0])
    return None


def _teachers(options: TrainOptions) -> list[str]:
    """The files of the teachers, without the student's own average."""
    paths = (options.teacher_weights, *options.more_teachers)
    return [path for path in paths if path not in ("", OWN_AVERAGE)]


def _give_up(options: TrainOptions, reason: str) -> None:
    """Says why nothing is inherited, or raises it where it was asked for."""
    if options.init == "inherit":
        raise UserError(f"{'--inherit' if options.inherit else '--init inherit'} {reason}")
    LOGGER.info(f"the student starts from scratch, since it cannot inherit from {reason}")


def common_classes(student: Model, teacher: Model, single_class: bool) -> tuple[list[tuple[int, int]], str]:
    """Pairs (class of the student, the same class of the teacher), by name, and why there are none."""
    ours, theirs = (
        HeadSpec("anchor_free", int(model.nc), (), None, names, None)
        for model, names in ((student, () if single_class else tuple(student.names)), (teacher, tuple(teacher.names)))
    )
    try:
        match = match_classes(ours, theirs)
    except DistillError as error:
        return [], str(error)
    return list(zip(match.student, match.teacher)), ""


def inherit_part(
    student: Model,
    heritage: Heritage,
    options: TrainOptions,
    batches: Sequence[Batch],
    loss: Callable[[nn.Module, Batch], Tensor],
    val: DetectionLoader | None,
    device: torch.device,
) -> Start | None:
    """Fills a student with its part of a teacher and says what it inherited; None where that fails and need not be.

    Args:
        student: on the device; filled in place.
        heritage: the teacher on the device too.
        options: the training's.
        batches: of training images, for Taylor importance and the statistics of BatchNorm.
        loss: (teacher, batch) -> its detection loss on its own classes.
        val: validation images, for the AP of what was inherited; None leaves it out.
        device: where it is done.

    Raises:
        UserError: --init inherit or --inherit asks for it, and it cannot be done.
    """
    from pruning import PruneError, inherit

    before = copy.deepcopy(student.state_dict())
    try:
        result = inherit(
            student,
            heritage.teacher,
            classes=heritage.classes,
            importance=options.inherit_importance,
            batches=batches,
            loss=loss,
            images=[images_to_device(batch.images, device) for batch in batches],
            seed=options.seed,
        )
    except PruneError as error:
        student.load_state_dict(before)
        _give_up(options, f"{heritage.path}: {error}")
        return None
    if result.anchors == "teacher" and (anchors := student.head.anchors_px) is not None:
        student.yaml["anchors"] = anchors.flatten(1).tolist()  # for whoever builds it from there
    LOGGER.info(f"{heritage.path}: {result.describe()}; inherited.txt has each layer")
    ap = None if val is None else ap_of(student, val, device)
    if ap is not None:
        normal = "; near 0 is normal, since its layers read fewer channels than they were trained for"
        LOGGER.info(f"AP right after the cut: {ap:.4f}{normal if result.importance else ''}")
    return Start(_facts(heritage, result, ap), result.table())


def _facts(heritage: Heritage, result: Inheritance, ap: float | None) -> dict[str, Any]:
    return {
        "from": "teacher",
        "path": heritage.path,
        "sha256": file_hash(heritage.path),
        "importance": result.importance,
        "parameters": [result.inherited, result.numbers],
        "classes": list(result.classes),
        "what": result.describe(),
        "AP": ap,
    }


def other_start(options: TrainOptions) -> Start:
    """The facts of a start that inherits nothing."""
    return Start({"from": "weights" if options.weights else "scratch"})


def ap_of(model: Model, val: DetectionLoader, device: torch.device) -> float:
    """COCO's AP of a model on the validation images; its mode is left as it was."""
    training = model.training
    result = evaluate(model, val, names=tuple(model.names), device=device, iou_thres=VALIDATION_IOU)
    model.train(training)
    return float(result.coco.ap)
