"""The distiller: one extra loss beside the detection loss."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .context import DistillContext, DistillSetup, HeadSpec
from .crossing import CrossHead
from .errors import DistillError, unknown_name
from .heads import score_maps
from .losses import LOSSES
from .losses.base import DistillationLoss, full, keywords
from .pairing import Layers, pair_layers
from .report import describe_pairs, describe_strength
from .schedule import KDSchedule
from .taps import unwrap
from .teacher import FrozenTeacher, raw_maps

_ADAPTER_SEED = 0


class Distiller(nn.Module):
    """Compares a student with a frozen teacher on the same images.

    Its parameters are the losses' adapters, nothing else: hand them to the optimizer. The teacher stands outside the
    module tree.

    Args:
        student: the network in training; never changed.
        teacher: a trained network. It is put in evaluation mode, its parameters stop requiring gradients.
        student_layers, teacher_layers: lists paired in order (layer indices, or module names with taps="hooks"), or
            "auto" on one or both sides for the layers that feed the head, paired by stride.
        losses: for each name in `LOSSES`, `weight` and the loss's own keywords. Of a loss of weight 0 the keywords
            are checked, no more: it has no parameters and is never computed.
        schedule: a KDSchedule, the mapping of one, or None for a constant factor 1.
        image_size: side, or (height, width), of the network input in pixels, for the dry run that finds channels and
            strides.
        student_head, teacher_head: the detection heads; losses on the output need them.
        taps: "extra_features" for networks whose forward pass takes `extra_features`, "hooks" for any other.
        teacher_half: run the teacher in half precision; None means on a CUDA device.
        cross_head: for the loss crosskd, the teacher's head or a function, from features of `teacher_layers` to raw
            head maps; None: found from the teacher's layers.

    Attributes:
        layers: the student's layers that the training loop has to ask for (empty for hooks, or without a feature loss).
        levels: the pairs of layers.
        item_names: keys of the items that `forward` returns, the same at every step.
        teacher: the teacher network.

    Raises:
        DistillError: student, teacher and settings do not fit; one line with what, where, and the remedy.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        student_layers: Layers,
        teacher_layers: Layers,
        losses: Mapping[str, Mapping[str, Any] | None],
        schedule: KDSchedule | Mapping[str, Any] | None = None,
        *,
        image_size: int | tuple[int, int],
        student_head: HeadSpec | None = None,
        teacher_head: HeadSpec | None = None,
        taps: str = "extra_features",
        teacher_half: bool | None = None,
        cross_head: CrossHead | None = None,
    ) -> None:
        super().__init__()
        _check_separate(student, teacher)
        hw = (image_size, image_size) if isinstance(image_size, int) else (int(image_size[0]), int(image_size[1]))
        self.schedule = schedule if isinstance(schedule, KDSchedule) else KDSchedule.from_mapping(schedule)
        self._factor = self.schedule.factor(0, 1)
        self._student_head, self._teacher_head = student_head, teacher_head
        parsed = {name: _parse(name, settings) for name, settings in losses.items()}
        self.weights = {name: weight for name, (weight, _) in parsed.items() if weight}
        active = [LOSSES[name] for name in self.weights]
        self._on_features = any(loss.needs == "features" for loss in active)
        self._on_output = any(loss.needs == "predictions" for loss in active)
        self._scored = any(loss.needs_scores or loss.needs_teacher_output for loss in active)
        asked: tuple[Layers, Layers] = (student_layers, teacher_layers) if self._on_features else ((), ())
        resized = all(parsed[n][1].get("resize") for n in self.weights if LOSSES[n].needs == "features")
        self._student_tap, teacher_tap, self.levels = pair_layers(student, teacher, *asked, taps, hw, resized)
        self._teacher = FrozenTeacher(teacher, teacher_tap, teacher_half)
        setup = DistillSetup(
            self.levels, student_head, teacher_head, student=student, teacher=teacher, cross_head=cross_head
        )
        # Fresh adapters must not advance the global random stream: trainings with and without them stay comparable.
        built: dict[str, DistillationLoss] = {}
        with torch.random.fork_rng(devices=[]):
            for name in self.weights:
                torch.default_generator.manual_seed(_ADAPTER_SEED)  # torch.manual_seed would reseed CUDA devices too
                built[name] = LOSSES[name](setup, **parsed[name][1])
        self.losses = nn.ModuleDict(built)
        self.to(next(student.parameters()).device)
        self.item_names = tuple(f"kd/{name}/{term}" for name, loss in built.items() for term in loss.names)

    @property
    def layers(self) -> list[int | str]:
        return list(self._student_tap.requested)

    @property
    def teacher(self) -> nn.Module:
        return self._teacher.model

    def forward(
        self, images: Tensor, predictions: Sequence[Tensor], features: Sequence[Tensor], targets: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to add to the detection loss, and its terms for the log.

        Args:
            images: (N, 3, H, W) as the student saw them, normalised.
            predictions: the student's raw head maps of its training pass.
            features: the student's maps of `layers`.
            targets: (T, 6) rows [image, class, cx, cy, w, h], normalised; T may be 0.

        Returns:
            factor * sum(weight * term) * N as a float32 scalar (multiplied by the batch size as the detection loss is),
            and for each of `item_names` the detached factor * weight * term.
        """
        if not self.losses or not self._factor:
            if self._on_features:
                self._student_tap.collect(features)  # lets go of hooked features and the graph behind them
            zero = torch.zeros((), device=images.device)
            return zero, dict.fromkeys(self.item_names, zero)
        terms = self._terms(self.losses, images, predictions, features, targets)
        total = torch.stack(list(terms.values())).sum() * images.shape[0]
        return total, {name: term.detach() for name, term in terms.items()}

    def _terms(
        self,
        losses: nn.ModuleDict,
        images: Tensor,
        predictions: Sequence[Tensor],
        features: Sequence[Tensor],
        targets: Tensor,
    ) -> dict[str, Tensor]:
        """All terms with factor and weight applied."""
        student, teacher = self._maps(images, predictions, features)
        head = self._teacher_head
        scores = score_maps(teacher["predictions"], head) if self._scored and head else {}
        context = DistillContext.from_targets(targets, images.shape[2:], scores)
        context = replace(context, teacher_output=teacher["predictions"], teacher=self.teacher)
        terms = {}
        for name, weight in self.weights.items():
            kind = LOSSES[name].needs
            scale = self._factor * weight
            for term, value in losses[name](student[kind], teacher[kind], context).items():
                terms[f"kd/{name}/{term}"] = scale * value
        return terms

    def _maps(
        self, images: Tensor, predictions: Sequence[Tensor], features: Sequence[Tensor]
    ) -> tuple[dict[str, list[Tensor]], dict[str, list[Tensor]]]:
        """What the student and the teacher made of the images, under the kinds that losses need; cast once for all."""
        teacher_raw, teacher_features = self._teacher(images, self._on_output or self._scored)
        student_features = self._student_tap.collect(features) if self._on_features else []
        student_raw = raw_maps(predictions) if self._on_output else []
        if self._student_head is not None:  # maps of auxiliary branches follow those of the head
            student_raw = student_raw[: len(self._student_head.strides)]
        if self._teacher_head is not None:
            teacher_raw = teacher_raw[: len(self._teacher_head.strides)]
        student = {"features": student_features, "predictions": student_raw}
        teacher = {"features": teacher_features, "predictions": teacher_raw}
        return _in_full(student), _in_full(teacher)

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Sets the schedule's factor for an epoch counted from 0; call it before each epoch, after a resume too."""
        self._factor = self.schedule.factor(epoch, epochs)
        for loss in self._each():
            loss.start_epoch(epoch)

    def check_finite(self, items: Mapping[str, Tensor]) -> None:
        """Stops a training whose distillation is not finite.

        It waits for the device: call it where items are read anyway.

        Raises:
            DistillError: names the first term that is infinite or not a number.
        """
        for name in self.item_names:
            if name in items and not math.isfinite(float(items[name])):
                raise DistillError(
                    f"{name} is {float(items[name])}; lower kd_losses.{name.split('/')[1]}.weight or the learning "
                    "rate, or set kd_schedule.warmup_epochs; a teacher with broken weights does this too"
                )

    def describe(self) -> str:
        """A table of the pairs: loss, weight, layers, channels, stride, adapter, parameters."""
        losses = dict(zip(self.losses, self._each()))
        return describe_pairs(losses, self.weights, self.levels)

    def preflight(
        self,
        images: Tensor,
        predictions: Sequence[Tensor],
        features: Sequence[Tensor],
        targets: Tensor,
        detection_loss: Tensor,
    ) -> str:
        """A table of each term's weighted value and its ratio to the detection loss, for one batch; nothing changes.

        Args: as `forward`, and the detection loss of the same batch as its criterion gives it.
        """
        if not self.losses or not self._factor:
            return "no distillation: every weight, or the schedule's factor, is 0"
        with torch.no_grad():
            items = self._terms(copy.deepcopy(self.losses), images, predictions, features, targets)
        return describe_strength(items, float(detection_loss), images.shape[0])

    def _each(self) -> list[DistillationLoss]:
        return [loss for loss in self.losses.values() if isinstance(loss, DistillationLoss)]


def _in_full(maps: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
    return {kind: [full(x) for x in values] for kind, values in maps.items()}


def _check_separate(student: nn.Module, teacher: nn.Module) -> None:
    """Freezing the teacher must not freeze the student."""
    own = {id(parameter) for parameter in unwrap(student).parameters()}
    if not own:
        raise DistillError("the student has no parameters")
    if any(id(parameter) in own for parameter in teacher.parameters()):
        raise DistillError("student and teacher share parameters; load the teacher as a network of its own")


def _parse(name: str, settings: Mapping[str, Any] | None) -> tuple[float, dict[str, Any]]:
    """Weight and keywords of one loss of the mixture."""
    if name not in LOSSES:
        raise unknown_name("loss", name, LOSSES, "kd_losses")
    where = f"kd_losses.{name}"
    if not isinstance(settings, Mapping | None):
        raise DistillError(f"{where} is {settings!r}; expected {{weight: 1.0, ...}}")
    settings = dict(settings or {})
    weight = settings.pop("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise DistillError(f"{where}: weight is {weight!r}; expected a number of at least 0")
    return float(weight), keywords(LOSSES[name], settings, where)
