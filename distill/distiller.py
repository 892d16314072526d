"""The distiller: one extra loss beside the detection loss."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .classes import HeadView, view_heads
from .context import DistillContext, DistillSetup, HeadSpec
from .crossing import CrossHead
from .errors import DistillError
from .heads import score_maps
from .losses import LOSSES
from .losses.base import DistillationLoss, full
from .pairing import Layers, check_separate, pair_layers
from .preflight import (
    Preflight,
    doubt_of_teacher,
    doubts_of_epoch,
    doubts_of_networks,
    found_share,
    measure_gradients,
    strength_table,
)
from .report import describe_pairs
from .schedule import KDSchedule
from .strength.balance import Balance
from .strength.gradients import through
from .strength.mixture import SHARE, Entry, Portion, parse_entry, split_entry
from .strength.points import EagerStudent, tap_points
from .teacher import FrozenTeacher, image_scaling, raw_maps, resized

_ADAPTER_SEED = 0
Values = dict[str, dict[str, Tensor]]
"""The terms of each loss, as the papers have them: without weights."""


class Seen(NamedTuple):
    """What both networks made of a batch: the student's maps as it gave them, and what losses see."""

    features: list[Tensor]
    student: dict[str, list[Tensor]]
    teacher: dict[str, list[Tensor]]
    context: DistillContext


class Distiller(nn.Module):
    """Compares a student with a frozen teacher on the same images.

    Its parameters are the losses' adapters, nothing else: hand them to the optimizer. The teacher stands outside the
    module tree.

    Args:
        student: the network in training; never changed.
        teacher: a trained network. It is put in evaluation mode, its parameters stop requiring gradients.
        student_layers, teacher_layers: lists paired in order (layer indices, or module names with taps="hooks"), or
            "auto" on one or both sides for the layers that feed the head, paired by stride.
        losses: for each name in `LOSSES`, `weight` or `share` and the loss's own keywords. A share is the ratio that
            the norm of its gradient shall have to the detection loss's, at the tapped layers of the student, or at
            what feeds its head for a loss on the output; the weight is found in training. Either is a number, or one
            for each part (`{box: 0.2, cls: 0.1}`). Of a loss of weight or share 0 the keywords are checked, no more:
            it has no parameters and is never computed.
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
        compiled: the training pass of the student runs through torch.compile, which gives no gradients at layers:
            shares are measured in a pass of their own, of the student as it is, whose buffers stay untouched.

    Attributes:
        layers: the student's layers that the training loop has to ask for (empty for hooks, or without a loss on
            features or a share).
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
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self._prefix = prefix
        check_separate(student, teacher)
        hw = (image_size, image_size) if isinstance(image_size, int) else (int(image_size[0]), int(image_size[1]))
        self.schedule = schedule if isinstance(schedule, KDSchedule) else KDSchedule.from_mapping(schedule)
        self._factor = self.schedule.factor(0, 1)
        parsed = [parse_entry(name, settings) for name, settings in losses.items()]
        self.entries = {entry.name: entry for entry in parsed if entry.active}
        active = [LOSSES[name] for name in self.entries]
        on_features = [entry.settings for name, entry in self.entries.items() if LOSSES[name].needs == "features"]
        self._on_output = any(loss.needs == "predictions" for loss in active)
        self._scored = any(loss.needs_scores or loss.needs_teacher_output for loss in active)
        asked: tuple[Layers, Layers] = (student_layers, teacher_layers) if on_features else ((), ())
        scaling = image_scaling(teacher, hw, teacher_image_size)
        self._resize = resize or scaling is not None
        unequal = resize or all(settings.get("resize") for settings in on_features)
        sizes = (hw, hw if scaling is None else scaling.size(hw))
        self._student_tap, teacher_tap, self.levels = pair_layers(student, teacher, *asked, taps, sizes, unequal)
        self._teacher = FrozenTeacher(teacher, teacher_tap, teacher_half, scaling)
        needed = self._on_output or self._scored
        self.student_view, self.teacher_view, note = view_heads(student_head, teacher_head, classes, needed)
        self.notes = (note,) if note and needed else ()
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
        self.losses = nn.ModuleDict(_built(self.entries.values(), setup))
        self._set_strengths()
        self._student_tap, self._places = tap_points(student, self._student_tap, student_layers, taps, self._shares)
        self._eager = EagerStudent(student) if compiled else None
        self.to(next(student.parameters()).device)

    def _set_strengths(self) -> None:
        """Weights of the losses, and what finds those that follow from shares."""
        self.portions = [p for name, loss in self._named() for p in split_entry(self.entries[name], loss)]
        shares = [portion for portion in self.portions if portion.kind == SHARE]
        self.balance = Balance(shares) if shares else None
        self.item_names = tuple(self._item(portion, term) for portion in self.portions for term in portion.terms)
        self._told: set[str] = set()

    @property
    def _shares(self) -> tuple[Portion, ...]:
        return self.balance.portions if self.balance is not None else ()

    def _item(self, portion: Portion, term: str) -> str:
        return f"{self._prefix}/{portion.entry}/{term}"

    @property
    def layers(self) -> list[int | str]:
        return list(self._student_tap.requested)

    @property
    def teacher(self) -> nn.Module:
        return self._teacher.model

    def forward(
        self,
        images: Tensor,
        predictions: Sequence[Tensor],
        features: Sequence[Tensor],
        targets: Tensor,
        *,
        detection_loss: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to add to the detection loss, and its terms for the log.

        Args:
            images: (N, 3, H, W) as the student saw them, normalised.
            predictions: the student's raw head maps of its training pass.
            features: the student's maps of `layers`.
            targets: (T, 6) rows [image, class, cx, cy, w, h], normalised; T may be 0.
            detection_loss: of the same batch, with its graph and multiplied by the batch size; only where a loss has a
                share, and only in training mode.

        Returns:
            factor * sum(weight * term) * N as a float32 scalar (multiplied by the batch size as the detection loss is),
            and for each of `item_names` the detached factor * weight * term.

        Raises:
            DistillError: a share is asked for without a detection loss, or cannot be had of this one.
        """
        if not self.losses or not self._factor:
            if self._student_tap.layers:
                self._student_tap.collect(features)  # lets go of hooked features and the graph behind them
            zero = torch.zeros((), device=images.device)
            return zero, dict.fromkeys(self.item_names, zero)
        seen = self._look(images, predictions, features, targets)
        following = self._follows(detection_loss)
        fresh = copy.deepcopy(self.losses) if following and self._eager else None  # before they draw random numbers
        values = self._values(self.losses, seen)
        if following and detection_loss is not None:
            self._follow(seen, values, images, predictions, detection_loss, fresh)
        terms = self._weighted(values)
        total = torch.stack(list(terms.values())).sum() * images.shape[0]
        return total, {name: term.detach() for name, term in terms.items()}

    def _look(self, images: Tensor, predictions: Sequence[Tensor], features: Sequence[Tensor], targets: Tensor) -> Seen:
        """What the student and the teacher made of the images, under the kinds that losses need; cast once for all."""
        teacher_raw, teacher_features = self._teacher(images, self._on_output or self._scored)
        tapped = self._student_tap.collect(features) if self._student_tap.layers else []
        if self._resize:
            teacher_features = [resized(t, s.shape[2:]) for s, t in zip(tapped, teacher_features)]
        teacher = {"features": _in_full(teacher_features), "predictions": _seen(teacher_raw, self.teacher_view)}
        context = self._context(images, targets, teacher["predictions"])
        return Seen(tapped, self._of_student(predictions, tapped), teacher, context)

    def _of_student(self, predictions: Sequence[Tensor], tapped: Sequence[Tensor]) -> dict[str, list[Tensor]]:
        raw = raw_maps(predictions) if self._on_output else []
        return {"features": _in_full(tapped[: len(self.levels)]), "predictions": _seen(raw, self.student_view)}

    def _values(self, losses: nn.ModuleDict, seen: Seen) -> Values:
        kinds = {name: LOSSES[name].needs for name in self.entries}
        return {
            name: losses[name](seen.student[kind], seen.teacher[kind], seen.context) for name, kind in kinds.items()
        }

    def _weighted(self, values: Values, guess: bool = False) -> dict[str, Tensor]:
        """All terms with the schedule's factor and their weights applied; `guess` those that are not known yet."""
        found = {} if self.balance is None else dict(zip(self._shares, self.balance.weights(guess)))
        terms = {}
        for portion in self.portions:
            scale = self._factor * found.get(portion, portion.amount)
            for term in portion.terms:
                terms[self._item(portion, term)] = scale * values[portion.entry][term]
        return terms

    def _follows(self, detection_loss: Tensor | None) -> bool:
        """Whether this batch may be one that sets factors."""
        if self.balance is None or not self.training or not torch.is_grad_enabled():
            return False
        if detection_loss is None or not detection_loss.requires_grad:
            raise DistillError(
                f"kd_losses.{self._shares[0].entry} asks for a share of the detection loss's gradient: call the "
                "distiller with detection_loss=..., with its graph, or give a weight in place of the share"
            )
        return self.balance.due

    def _follow(
        self,
        seen: Seen,
        values: Values,
        images: Tensor,
        predictions: Sequence[Tensor],
        detection_loss: Tensor,
        fresh: nn.ModuleDict | None,
    ) -> None:
        """Lets the factors follow this batch; a compiled student and `fresh` copies of the losses see it once more."""
        assert self.balance is not None
        labels = (seen.context.box_classes >= 0).sum()
        detection = detection_loss / images.shape[0]
        if fresh is not None and self._eager is not None:
            output, tapped = self._eager.look(self._student_tap, images)
            detection = through(raw_maps(predictions), detection, raw_maps(output))
            values = self._values(fresh, seen._replace(student=self._of_student(output, tapped)))
            seen = seen._replace(features=tapped)
        points = {kind: [seen.features[i] for i in places] for kind, places in self._places.items()}
        layers = {kind: [self._student_tap.layers[i] for i in places] for kind, places in self._places.items()}
        self.balance.measure(values, points, detection, labels, layers)

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
        if self.balance is not None:
            self.balance.start_epoch()
        for loss in self._each():
            loss.start_epoch(epoch)

    def epoch_row(self) -> dict[str, float]:
        """What the log should know of this epoch: the schedule's factor, shares that were reached, their factors."""
        row = {f"schedule/{self._prefix}": self._factor}
        return row if self.balance is None else row | self.balance.row(self._prefix)

    def epoch_doubts(self, items: Mapping[str, float]) -> list[str]:
        """What was wrong for the whole epoch that has ended, one line each; each of them only once.

        Args:
            items: the mean over the epoch of each of `item_names`.
        """
        mine = {name: items[name] for name in self.item_names if name in items and name not in self._silent}
        doubts = doubts_of_epoch(mine) if self._factor else []
        doubts += self.balance.excesses() if self.balance is not None else []
        fresh = [doubt for doubt in doubts if doubt not in self._told]
        self._told |= {*doubts}
        return fresh

    @property
    def _silent(self) -> tuple[str, ...]:
        """Items that are 0 by nature."""
        silent = {(name, term) for name, loss in self._named() for term in loss.zero_terms}
        return tuple(self._item(p, term) for p in self.portions for term in p.terms if (p.entry, term) in silent)

    def describe(self) -> str:
        """A table of the pairs: loss, weight, layers, channels, stride, adapter, parameters."""
        losses = dict(zip(self.losses, self._each()))
        return describe_pairs(losses, {name: str(entry) for name, entry in self.entries.items()}, self.levels)

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
            values = self._values(losses, self._look(images, predictions, features, targets))
            terms = self._weighted(values, guess=True)
            gradients = measure_gradients(terms, losses, learning, detection)
        items = {name: term.detach() for name, term in terms.items()}
        shared = [self._item(portion, term) for portion in self._shares for term in portion.terms]
        table = strength_table(items, float(detection.detach()), gradients, shared)
        doubts = doubts_of_networks(learning, self.teacher)
        if self.balance is not None:
            table += f"\n{self.balance.table()}"
        if self.student_view is not None and self.teacher_view is not None:
            raw = _seen(self._teacher(images, True)[0], self.teacher_view)
            share, count = found_share(raw, self.teacher_view.spec, self._context(images, targets, raw))
            table += f"\nthe teacher finds {share:.0%} of the {count} labelled boxes of this batch"
            doubts.append(doubt_of_teacher(share, count))
        doubts += [f"no gradient reaches the adapter {name}: it would stay as it is" for name in gradients.idle]
        unknown = self.item_names if self.balance is not None and not self.balance.known else ()
        return Preflight(table, tuple(doubt for doubt in doubts if doubt), (*self._silent, *unknown))

    def _each(self) -> list[DistillationLoss]:
        return [loss for _, loss in self._named()]

    def _named(self) -> list[tuple[str, DistillationLoss]]:
        return [(name, loss) for name, loss in self.losses.items() if isinstance(loss, DistillationLoss)]


def _built(entries: Iterable[Entry], setup: DistillSetup) -> dict[str, DistillationLoss]:
    """The losses; fresh adapters do not advance the global random stream, so trainings without them are comparable."""
    built: dict[str, DistillationLoss] = {}
    with torch.random.fork_rng(devices=[]):
        for entry in entries:
            torch.default_generator.manual_seed(_ADAPTER_SEED)  # torch.manual_seed would reseed CUDA devices too
            built[entry.name] = LOSSES[entry.name](setup, **entry.settings)
    return built


def _in_full(maps: Sequence[Tensor]) -> list[Tensor]:
    return [full(x) for x in maps]


def _seen(maps: Sequence[Tensor], view: HeadView | None) -> list[Tensor]:
    """Raw maps in full precision, as they are compared."""
    maps = _in_full(maps)
    return maps if view is None or not maps else view(maps)
