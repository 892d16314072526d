"""A student that starts as a part of its teacher: cut out of it, to exactly the architecture that the student has.

    from pruning import inherit

    result = inherit(student, teacher, classes=[(0, 3), (1, 7)], batches=batches, loss=loss, images=images)
    print(result.describe())

The two are paired by their rows, which are of the same kinds in the same order; repeats and widths are free. Every
group of channels that live and die together (`pruning.graph`) goes down to the student's width, the most important
channels first. Of inner blocks, those behind each other whose outputs are all kept (C2f) and those without a shortcut
stay from the first on, as their inputs are then unchanged; of those with a shortcut the most important ones stay.
Channels that the teacher lacks enter with outgoing weights of zero, and blocks with a shortcut as the identity, so that
the function that is inherited is kept.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pruning.batchnorm import reestimate_batchnorm
from pruning.channel_match import FRESH, ClassPairs, Places, match_channels
from pruning.errors import PruneError
from pruning.graph import CONVOLUTIONS, Port, Segment
from pruning.importance import Importance, L1Norm, Loss
from pruning.inheritance import ANCHORS, Inheritance, TensorMap, account, tensor_maps
from pruning.pairing import Choose, Twins, main_sources, make_twins, rows_of
from pruning.pruner import TRACE_SIZE, PruneSettings, check_settings, make_importance, run_for_outputs

WITHOUT_LABELS = "l1"  # where Taylor importance has no label to be measured by


def inherit(
    student: nn.Module,
    teacher: nn.Module,
    *,
    classes: ClassPairs | None = None,
    importance: str = "taylor",
    batches: Iterable[Any] = (),
    loss: Loss | None = None,
    images: Iterable[Tensor] | None = None,
    image: Tensor | None = None,
    seed: int = 0,
) -> Inheritance:
    """Fills a student with the part of its teacher that its architecture has room for.

    Nothing is cut, estimated or measured where the teacher has no more channels and blocks than the student, and no
    global random stream advances.

    Args:
        student: filled in place, whatever its weights were; what the teacher lacks stays as it is.
        teacher: left as it is; its BatchNorm must not be folded.
        classes: pairs (class of the student, the same class of the teacher); other classes stay as built. None: the
            numbers of classes are equal, and so are the classes. With no pair, "taylor" has no labels and becomes "l1".
        importance: a key of `pruning.importance.IMPORTANCES`.
        batches, loss: data, and (teacher, batch) -> scalar, for Taylor importance; labels are the teacher's classes
            (see `labels_for_teacher`).
        images: batches of training images for the student, on which the statistics of BatchNorm behind cuts are
            estimated anew; None leaves the teacher's.
        image: (1, C, H, W) that both take; of 3 channels by default.
        seed: of random importance.

    Raises:
        PruneError: the pair does not allow it (names the row that differs), the teacher's BatchNorm is folded, or a
            setting does not work. The student is as it was.
    """
    pairs = _class_pairs(student, teacher, classes)
    importance = WITHOUT_LABELS if importance == "taylor" and not pairs else importance
    settings = check_settings(PruneSettings(importance=importance, seed=seed))
    with _unchanged(student, teacher):
        scorer = _Scorer(teacher, settings, batches, loss)
        twins, places = _match(student, teacher, pairs, scorer.blocks, scorer.channels_of, image)
        maps = tensor_maps(student, twins, places)
        result = _account(student, teacher, twins, places, maps, pairs, importance)
        _write(student, twins, maps)
        touched = {*result.touched, *_silence_blocks(student, twins)}
        if touched and images is not None:
            norms = _norms_behind(student, touched)
            reestimate_batchnorm(student, images, norms)
            result = replace(result, estimated=len(norms))
    return replace(result, touched=tuple(sorted(touched)))


def plan_inheritance(
    student: nn.Module, teacher: nn.Module, *, classes: ClassPairs | None = None, image: Tensor | None = None
) -> Inheritance:
    """What `inherit` would give, without data and without touching a weight; both may be on the meta device.

    Raises:
        PruneError: as `inherit`.
    """
    pairs = _class_pairs(student, teacher, classes)

    def first_blocks(names: Sequence[str], blocks: Sequence[nn.Module], count: int) -> list[int]:
        return list(range(count))

    def first_channels(twins: Twins) -> Callable[[Segment, int], Tensor]:
        return lambda segment, count: torch.arange(count)

    with _unchanged(student, teacher):
        twins, places = _match(student, teacher, pairs, first_blocks, first_channels, image)
        maps = tensor_maps(student, twins, places)
        result = _account(student, teacher, twins, places, maps, pairs, "importance")
    hidden = {one.row for one in twins.blocks if one.fresh and one.in_turn and not one.shortcut}
    return replace(result, touched=tuple(sorted({*result.touched, *hidden})))


def labels_for_teacher(targets: Tensor, classes: ClassPairs) -> Tensor:
    """Labels in the teacher's classes; those of classes that it does not know are left out.

    Args:
        targets: (T, 6) rows [image, class of the student, cx, cy, w, h].
        classes: pairs (class of the student, the same class of the teacher).
    """
    theirs = dict(classes)
    known = torch.tensor([int(label) in theirs for label in targets[:, 1]], dtype=torch.bool, device=targets.device)
    mapped = targets[known].clone()
    mapped[:, 1] = mapped.new_tensor([float(theirs[int(label)]) for label in mapped[:, 1]])
    return mapped


class _Scorer:
    """Says what stays, by an importance that is measured on the teacher when it is needed first."""

    def __init__(self, teacher: nn.Module, settings: PruneSettings, batches: Iterable[Any], loss: Loss | None) -> None:
        self.teacher, self.settings, self.batches, self.loss = teacher, settings, batches, loss
        self.measure: Importance | None = None

    def scores(self, segment: Segment) -> Tensor:
        """(n,) how much each channel of a segment matters; names and modules are the teacher's."""
        if not any(isinstance(module, nn.BatchNorm2d) for module in segment.modules()):
            return L1Norm(self.teacher)(segment)
        if self.measure is None:
            self.measure = make_importance(self.teacher, self.settings, self.batches, self.loss)
        return self.measure(segment)

    def channels_of(self, twins: Twins) -> Callable[[Segment, int], Tensor]:
        """The choice of channels for a pair."""

        def choose(segment: Segment, count: int) -> Tensor:
            places = {
                replace(port, name=twins.teacher_names[twins.as_teacher(port.name)]): at
                for port, at in segment.places.items()
            }
            ranked = self.scores(Segment(places)).sort(stable=True).indices
            return ranked[segment.size - count :].sort().values

        return choose

    def blocks(self, names: Sequence[str], blocks: Sequence[nn.Module], count: int) -> list[int]:
        """The blocks whose last BatchNorm, taken as one gate, matters most, in their order."""
        scores = []
        for name, block in zip(names, blocks):
            conv, norm = _last(block, CONVOLUTIONS), _last(block, (nn.BatchNorm2d,))
            if norm is None or conv is None:
                return list(range(count))
            places = {}
            for (leaf, module), side in ((conv, "out"), (norm, "both")):
                width = int(module.weight.shape[0])  # type: ignore[index, union-attr]
                places[Port(f"{name}.{leaf}", side, module, width)] = torch.arange(width)[None]
            scores.append(self.scores(Segment(places)))
        return sorted(torch.cat(scores).sort(descending=True, stable=True).indices[:count].tolist())


def _last(block: nn.Module, kinds: tuple[type[nn.Module], ...]) -> tuple[str, nn.Module] | None:
    """Name and module of the last layer of some kinds in a block."""
    return next(((n, m) for n, m in reversed(list(block.named_modules())) if isinstance(m, kinds)), None)


def _class_pairs(student: nn.Module, teacher: nn.Module, classes: ClassPairs | None) -> ClassPairs:
    mine, other = (int(rows_of(model, who)[-1].nc) for model, who in ((student, "student"), (teacher, "teacher")))  # type: ignore[arg-type]
    if classes is None:
        if mine != other:
            raise PruneError(f"the student has {mine} classes, the teacher {other}; give the pairs of equal classes")
        return [(index, index) for index in range(mine)]
    pairs = [(int(ours), int(theirs)) for ours, theirs in classes]
    for position, (who, count) in enumerate((("student", mine), ("teacher", other))):
        listed = [pair[position] for pair in pairs]
        wrong = next((index for index in listed if not 0 <= index < count or listed.count(index) > 1), None)
        if wrong is not None:
            raise PruneError(
                f"classes: {wrong} stands twice among the {who}'s, or is none of its {count}; give each class once"
            )
    return pairs


@contextmanager
def _unchanged(*models: nn.Module) -> Iterator[None]:
    """Leaves the modes of networks and PyTorch's random streams as they were."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    devices = {parameter.device for model in models for parameter in model.parameters()}
    with torch.random.fork_rng(devices=[device for device in devices if device.type == "cuda"]):
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def _match(
    student: nn.Module,
    teacher: nn.Module,
    classes: ClassPairs,
    choose_blocks: Choose,
    choose_channels: Callable[[Twins], Callable[[Segment, int], Tensor]],
    image: Tensor | None,
) -> tuple[Twins, Places]:
    if image is None:
        strides = [float(s) for model in (student, teacher) for s in rows_of(model, "network")[-1].strides]  # type: ignore[union-attr]
        image = torch.zeros(1, 3, *[max(TRACE_SIZE, int(max(strides)))] * 2)
    twins = make_twins(student, teacher, choose_blocks, run_for_outputs, image[:1])
    images = image[:1].to(next(student.parameters())), image[:1].to(next(teacher.parameters()))
    return twins, match_channels(twins, classes, choose_channels(twins), run_for_outputs, images)


def _account(
    student: nn.Module,
    teacher: nn.Module,
    twins: Twins,
    places: Places,
    maps: list[TensorMap],
    classes: ClassPairs,
    importance: str,
) -> Inheritance:
    layers = account(student, teacher, twins, maps)
    head = rows_of(student, "student")[-1]
    anchors = ""
    if hasattr(head, "anchors"):
        anchors = "teacher" if any(one.target.split(".")[-1] in ANCHORS for one in maps) else "student"
    cut = any(layer.cut for layer in layers) or any(one.teacher > one.student for one in twins.blocks)
    return Inheritance(
        layers,
        twins.blocks,
        importance if cut else "",
        (len(classes), int(head.nc)),  # type: ignore[arg-type]
        anchors,
        tuple(sorted(_touched(teacher, twins, places))),
        notes=_notes(twins),
    )


def _notes(twins: Twins) -> list[str]:
    """A line for each difference, with the rows where it is."""
    rows: dict[str, dict[int, None]] = {}
    for row, text in twins.notes:
        rows.setdefault(text, {})[row] = None
    return [f"{text} (row {', '.join(map(str, found))})" for text, found in rows.items()]


def _touched(teacher: nn.Module, twins: Twins, places: Places) -> set[int]:
    """Rows in which a convolution reads fewer channels than in the teacher, or in which something else is missing."""
    rows = {row for row, _ in twins.notes} | {one.row for one in twins.blocks if one.teacher > one.student}
    for (name, side), index in places.items():
        if side == "in":
            full = teacher.get_submodule(twins.teacher_names[twins.as_teacher(name)])
            if int((index != FRESH).sum()) < int(full.in_channels):  # type: ignore[arg-type]
                rows.add(int(name.split(".")[1]))
    return rows


def _write(student: nn.Module, twins: Twins, maps: list[TensorMap]) -> None:
    mine = {**dict(student.named_parameters()), **dict(student.named_buffers())}
    other = {**dict(twins.teacher.named_parameters()), **dict(twins.teacher.named_buffers())}
    for one in maps:
        one.write(mine[one.target], other[one.source])
    row, its = twins.rows[-1]
    head, theirs = rows_of(student, "student")[row], rows_of(twins.teacher, "teacher")[its]
    if (
        hasattr(head, "anchor_grid")
        and not hasattr(theirs, "anchor_grid")
        and head.anchors.shape == theirs.anchors.shape
    ):  # type: ignore[union-attr]
        head.set_anchors(theirs.anchors_px)  # type: ignore[operator]
    for name, part in head.named_children():  # implicit layers that the teacher lacks start neutral
        if name in ("ia", "im") and not hasattr(theirs, name):
            for parameter in part.parameters():
                nn.init.constant_(parameter, 0.0 if name == "ia" else 1.0)


@torch.no_grad()
def _silence_blocks(student: nn.Module, twins: Twins) -> set[int]:
    """Makes the blocks that only the student has the identity where they have a shortcut.

    Returns:
        The rows that hold a block in a chain which cannot be made one, and which therefore stays as built.
    """
    rows = set()
    for one in (one for one in twins.blocks if one.in_turn):
        for block in map(student.get_submodule, one.fresh):
            found, conv = (
                _last(block, (nn.BatchNorm2d,)),
                next(m for m in block.modules() if isinstance(m, CONVOLUTIONS)),
            )
            if not one.shortcut or found is None:
                rows.add(one.row)
                continue
            norm = found[1]
            kept = copy.deepcopy(norm.state_dict())
            nn.init.zeros_(norm.weight)  # type: ignore[arg-type]
            nn.init.zeros_(norm.bias)  # type: ignore[arg-type]
            block.eval()
            x = torch.linspace(-1, 1, conv.in_channels * 64).view(1, -1, 8, 8).to(conv.weight)
            if not torch.equal(block(x), x):
                norm.load_state_dict(kept)
                rows.add(one.row)
    return rows


def _norms_behind(student: nn.Module, touched: set[int]) -> list[nn.Module]:
    """The BatchNorm layers in rows that are touched, or that read one that is."""
    rows = rows_of(student, "student")
    reached: set[int] = set()
    for index in range(len(rows)):
        if index in touched or reached & set(main_sources(rows, index)):
            reached.add(index)
    kind = nn.modules.batchnorm._BatchNorm
    return [module for index in sorted(reached) for module in rows[index].modules() if isinstance(module, kind)]
