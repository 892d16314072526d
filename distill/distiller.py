"""The distiller: one extra loss beside the detection loss."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .classes import HeadView, compare_heads
from .context import DistillContext, DistillSetup, HeadSpec
from .crossing import CrossHead
from .errors import DistillError, shown, unknown_name
from .heads import score_maps
from .losses import LOSSES
from .losses.base import DistillationLoss, full, keywords
from .pairing import Layers, pair_layers
from .preflight import Preflight, capacity_gap, doubt_of_teacher, found_share, measure_gradients, strength_table
from .report import describe_pairs
from .schedule import KDSchedule
from .taps import unwrap
from .teacher import FrozenTeacher, ImageScaling, raw_maps, resized

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
        student_head, teacher_head: the detection heads; losses on the output need them. Kinds, strides and classes may
            differ: what both have is compared.
        taps: "extra_features" for networks whose forward pass takes `extra_features`, "hooks" for any other.
        teacher_half: run the teacher in half precision; None means on a CUDA device.
        cross_head: for the loss crosskd, the teacher's head or a function, from features of `teacher_layers` to raw
            head maps; None: found from the teacher's layers.
        teacher_image_size: side, or longer side, of the images that the teacher sees; None: as the student's.
        resize: bring the teacher's maps to the student's size where they differ; pairs of unequal strides are allowed
            then.
        classes: names of the classes that this teacher teaches, of those that both heads have; None: all of them.
        prefix: first part of the items' names, to tell several teachers apart.

    Attributes:
        layers: the student's layers that the training loop has to ask for (empty for hooks, or without a feature loss).
        levels: the pairs of layers.
        item_names: keys of the items that `forward` returns, the same at every step.
        teacher: the teacher network.
        notes: what a user should know of how the two are compared, one line each.

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
        teacher_image_size: int | None = None,
        resize: bool = False,
        classes: Sequence[str] | None = None,
        prefix: str = "kd",
    ) -> None:
        super().__init__()
        self._prefix = prefix
        _check_separate(student, teacher)
        hw = (image_size, image_size) if isinstance(image_size, int) else (int(image_size[0]), int(image_size[1]))
        self.schedule = schedule if isinstance(schedule, KDSchedule) else KDSchedule.from_mapping(schedule)
        self._factor = self.schedule.factor(0, 1)
        parsed = {name: _parse(name, settings) for name, settings in losses.items()}
        self.weights = {name: weight for name, (weight, _) in parsed.items() if weight}
        active = [LOSSES[name] for name in self.weights]
        self._on_features = any(loss.needs == "features" for loss in active)
        self._on_output = any(loss.needs == "predictions" for loss in active)
        self._scored = any(loss.needs_scores or loss.needs_teacher_output for loss in active)
        asked: tuple[Layers, Layers] = (student_layers, teacher_layers) if self._on_features else ((), ())
        scaling = _scaling(teacher, hw, teacher_image_size)
        self._resize = resize or scaling is not None
        unequal = resize or all(parsed[n][1].get("resize") for n in self.weights if LOSSES[n].needs == "features")
        sizes = (hw, hw if scaling is None else scaling.size(hw))
        self._student_tap, teacher_tap, self.levels = pair_layers(student, teacher, *asked, taps, sizes, unequal)
        self._teacher = FrozenTeacher(teacher, teacher_tap, teacher_half, scaling)
        self._view_heads(student_head, teacher_head, classes)
        setup = DistillSetup(
            self.levels,
            None if self.student_view is None else self.student_view.spec,
            None if self.teacher_view is None else self.teacher_view.spec,
            same_images=scaling is None,
            teacher=teacher,
            teacher_view=self.teacher_view,
            student=student,
            cross_head=cross_head,
        )
        # Fresh adapters must not advance the global random stream: trainings with and without them stay comparable.
        built: dict[str, DistillationLoss] = {}
        with torch.random.fork_rng(devices=[]):
            for name in self.weights:
                torch.default_generator.manual_seed(_ADAPTER_SEED)  # torch.manual_seed would reseed CUDA devices too
                built[name] = LOSSES[name](setup, **parsed[name][1])
        self.losses = nn.ModuleDict(built)
        self.to(next(student.parameters()).device)
        self.item_names = tuple(f"{prefix}/{name}/{term}" for name, loss in built.items() for term in loss.names)

    def _view_heads(self, student: HeadSpec | None, teacher: HeadSpec | None, classes: Sequence[str] | None) -> None:
        """Finds what the two heads have in common; without a loss that looks at heads, nothing need be."""
        self.student_view: HeadView | None = None
        self.teacher_view: HeadView | None = None
        self.notes: tuple[str, ...] = ()
        if student is not None and teacher is not None:
            try:
                self.student_view, self.teacher_view, note = compare_heads(student, teacher, classes)
            except DistillError:
                if self._on_output or self._scored or classes is not None:
                    raise
            else:
                self.notes = (note,) if note and (self._on_output or self._scored) else ()
        elif student is not None:
            self.student_view = HeadView(student, student.strides, range(student.num_classes))
        elif teacher is not None:
            self.teacher_view = HeadView(teacher, teacher.strides, range(teacher.num_classes))

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
        context = self._context(images, targets, teacher["predictions"])
        terms = {}
        for name, weight in self.weights.items():
            kind = LOSSES[name].needs
            scale = self._factor * weight
            for term, value in losses[name](student[kind], teacher[kind], context).items():
                terms[f"{self._prefix}/{name}/{term}"] = scale * value
        return terms

    def _maps(
        self, images: Tensor, predictions: Sequence[Tensor], features: Sequence[Tensor]
    ) -> tuple[dict[str, list[Tensor]], dict[str, list[Tensor]]]:
        """What the student and the teacher made of the images, under the kinds that losses need; cast once for all."""
        teacher_raw, teacher_features = self._teacher(images, self._on_output or self._scored)
        student_features = self._student_tap.collect(features) if self._on_features else []
        if self._resize:
            teacher_features = [resized(t, s.shape[2:]) for s, t in zip(student_features, teacher_features)]
        student_raw = raw_maps(predictions) if self._on_output else []
        student = {"features": _in_full(student_features), "predictions": _seen(student_raw, self.student_view)}
        teacher = {"features": _in_full(teacher_features), "predictions": _seen(teacher_raw, self.teacher_view)}
        return student, teacher

    def _context(self, images: Tensor, targets: Tensor, teacher_raw: list[Tensor]) -> DistillContext:
        """What the losses may know besides; classes are those that are compared."""
        view, scores = self.teacher_view, {}
        if self._scored and view is not None:
            scores = score_maps(teacher_raw, view.spec, images.shape[2:])
        context = DistillContext.from_targets(targets, images.shape[2:], scores)
        classes = context.box_classes if self.student_view is None else self.student_view.place_of(context.box_classes)
        return replace(context, box_classes=classes, teacher_output=teacher_raw, teacher=self.teacher)

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Sets the schedule's factor for an epoch counted from 0; call it before each epoch, after a resume too."""
        self._factor = self.schedule.factor(epoch, epochs)
        for loss in self._each():
            loss.start_epoch(epoch)

    def epoch_row(self) -> dict[str, float]:
        """What the log should know of this epoch: the schedule's factor."""
        return {f"schedule/{self._prefix}": self._factor}

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
        parameters: Iterable[Tensor] = (),
    ) -> Preflight:
        """What one batch says of the distillation: how strong it is, who learns, and whether the teacher is any good.

        Values and, with respect to the student's parameters, gradients of each term are compared with the detection
        loss's. Nothing changes: terms come from copies of the losses, gradients go into no parameter.

        Args:
            images, predictions, features, targets: as for `forward`.
            detection_loss: of the same batch as its criterion gives it, with its graph.
            parameters: the student's; without them gradients of terms are not measured.
        """
        if not self.losses or not self._factor:
            table = "no distillation: every weight, or the schedule's factor, is 0"
            return Preflight(table, silent=self.item_names)
        losses, learning = copy.deepcopy(self.losses), list(parameters)
        detection = detection_loss / images.shape[0]
        with torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
            terms = self._terms(losses, images, predictions, features, targets)
            gradients = measure_gradients(terms, losses, learning, detection)
        items = {name: term.detach() for name, term in terms.items()}
        table, doubts = strength_table(items, float(detection.detach()), gradients), []
        if self.student_view is not None and self.teacher_view is not None:
            raw = _seen(self._teacher(images, True)[0], self.teacher_view)
            share, count = found_share(raw, self.teacher_view.spec, self._context(images, targets, raw))
            table += f"\nthe teacher finds {share:.0%} of the {count} labelled boxes of this batch"
            doubts.append(doubt_of_teacher(share, count))
        if learning:
            doubts.append(capacity_gap(_count(learning), _count(self.teacher.parameters())))
        doubts += [f"no gradient reaches the adapter {name}: it would stay as it is" for name in gradients.idle]
        if any(p.requires_grad or p.grad is not None for p in self.teacher.parameters()):
            doubts.append("the teacher's parameters take gradients: something unfroze them after it was frozen")
        silent = [f"{self._prefix}/{name}/{term}" for name, loss in self._named() for term in loss.zero_terms]
        return Preflight(table, tuple(doubt for doubt in doubts if doubt), tuple(silent))

    def _each(self) -> list[DistillationLoss]:
        return [loss for _, loss in self._named()]

    def _named(self) -> list[tuple[str, DistillationLoss]]:
        return [(name, loss) for name, loss in self.losses.items() if isinstance(loss, DistillationLoss)]


def _in_full(maps: Sequence[Tensor]) -> list[Tensor]:
    return [full(x) for x in maps]


def _seen(maps: Sequence[Tensor], view: HeadView | None) -> list[Tensor]:
    """Raw maps in full precision, as they are compared."""
    maps = _in_full(maps)
    return maps if view is None or not maps else view(maps)


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _scaling(teacher: nn.Module, image_hw: tuple[int, int], teacher_size: int | None) -> ImageScaling | None:
    """How the teacher's images are resized; None where they are as large as the student's."""
    if teacher_size is None or teacher_size == max(image_hw):
        return None
    strides = getattr(unwrap(teacher), "stride", None)
    stride = 32 if strides is None else int(torch.as_tensor(strides).max())
    return ImageScaling(max(image_hw), teacher_size, stride)


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
        raise DistillError(f"{where} is {shown(settings)}; expected {{weight: 1.0, ...}}")
    settings = dict(settings or {})
    weight = settings.pop("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise DistillError(f"{where}: weight is {shown(weight)}; expected a number of at least 0")
    return float(weight), keywords(LOSSES[name], settings, where)
