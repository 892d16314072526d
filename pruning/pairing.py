"""Two networks of the same rows: which layer of the student is which of the teacher, whatever the repeats.

A network is a module whose `model` is an `nn.Sequential` of rows, each with `.i` (its number), `.f` (the rows that it
reads: one number or a list, negative ones counted back from the row) and `.type` (the name of its block). The last row
is the head; it has `num_levels`, `nc`, and with anchors `na`, `no` and `prediction_convolutions(sources)`, without
anchors `reg_max` and the branches `cv2` (boxes) and `cv3` (classes).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pruning.errors import PruneError
from pruning.graph import CONVOLUTIONS, Forward

HEADS = ("Detect", "IDetect", "IAuxDetect")  # forms of one head: implicit layers and auxiliary maps are for training
TRAINING_PARTS = ("ia", "im", "m2")  # what some of these have and others lack
CHAINS = (nn.Sequential, nn.ModuleList)
GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "output_padding", "transposed")

Choose = Callable[[Sequence[str], Sequence[nn.Module], int], list[int]]


@dataclass(frozen=True)
class Blocks:
    """Inner blocks of which one network has more than the other.

    Attributes:
        name: path of the list of blocks in the student.
        row: of the student.
        kept: numbers of the teacher's blocks that the student inherits.
        student, teacher: how many each has.
        in_turn: the blocks are a chain, each of which reads only the one before.
        shortcut: every block adds its input to its output.
    """

    name: str
    row: int
    kept: tuple[int, ...]
    student: int
    teacher: int
    in_turn: bool
    shortcut: bool

    @property
    def fresh(self) -> list[str]:
        """Paths of the student's blocks that the teacher lacks."""
        return [f"{self.name}.{number}" for number in range(len(self.kept), self.student)]


@dataclass
class Twins:
    """Copies of a student and a teacher with the blocks that both have, so that they differ in widths alone.

    Attributes:
        student, teacher: the copies.
        student_names, teacher_names: path in the copy -> path in the network that it is a copy of.
        rows: the pairs of rows (student's, teacher's); rows that serve auxiliary maps alone are among them
            where both networks have these.
        blocks: where the numbers of inner blocks differ.
        notes: what else differs, such as an activation, by row of the student.
    """

    student: nn.Module
    teacher: nn.Module
    student_names: dict[str, str]
    teacher_names: dict[str, str]
    rows: list[tuple[int, int]]
    blocks: list[Blocks] = field(default_factory=list)
    notes: list[tuple[int, str]] = field(default_factory=list)

    def as_student(self, name: str) -> str:
        """The path in the student's copy that has a path in the teacher's; empty where no row is paired with it."""
        parts = name.split(".")
        ours = {theirs: ours for ours, theirs in self.rows}.get(int(parts[1])) if len(parts) > 1 else None
        return "" if ours is None else ".".join([parts[0], str(ours), *parts[2:]])

    def as_teacher(self, name: str) -> str:
        """The path in the teacher's copy that has a path in the student's; empty where no row is paired with it."""
        parts = name.split(".")
        theirs = dict(self.rows).get(int(parts[1])) if len(parts) > 1 else None
        return "" if theirs is None else ".".join([parts[0], str(theirs), *parts[2:]])


def rows_of(model: nn.Module, who: str) -> nn.Sequential:
    """The rows of a network.

    Raises:
        PruneError: it has none.
    """
    rows = getattr(model, "model", None)
    if not isinstance(rows, nn.Sequential) or not all(hasattr(row, "f") for row in rows):
        raise PruneError(f"the {who} is no sequence of rows (model.model, each with .i, .f, .type); it cannot inherit")
    return rows


def sources_of(rows: nn.Sequential, index: int) -> list[int]:
    """The rows that a row reads; -1 is the image. Of a head, those of its auxiliary maps too."""
    found: Any = rows[index].f
    listed = found if isinstance(found, list | tuple) else [found]
    return [int(one) if one >= 0 else index + int(one) for one in listed]


def main_sources(rows: nn.Sequential, index: int) -> list[int]:
    """`sources_of` without those of auxiliary maps."""
    found = sources_of(rows, index)
    return found[: int(rows[index].num_levels)] if index == len(rows) - 1 else found  # type: ignore[arg-type]


def needed_rows(rows: nn.Sequential, sources: Callable[[nn.Sequential, int], list[int]]) -> list[int]:
    """The rows that the head needs: with `main_sources` all but those that serve auxiliary maps alone."""
    needed, waiting = set(), [len(rows) - 1]
    while waiting:
        index = waiting.pop()
        if index >= 0 and index not in needed:
            needed.add(index)
            waiting += sources(rows, index)
    return sorted(needed)


def pair_rows(student: nn.Sequential, teacher: nn.Sequential) -> list[tuple[int, int]]:
    """Pairs the rows of two networks, which must be of the same kinds in the same order.

    Raises:
        PruneError: names the first row that differs.
    """
    auxiliary = len(sources_of(student, len(student) - 1)) == len(sources_of(teacher, len(teacher) - 1))
    sources = sources_of if auxiliary else main_sources  # those of one network alone have no partner
    ours, theirs = needed_rows(student, sources), needed_rows(teacher, sources)
    for place, (mine, other) in enumerate(zip(ours, theirs)):
        kinds = [str(student[mine].type), str(teacher[other].type)]
        read = [
            [row if row < 0 else order.index(row) for row in sources(rows, index)]
            for rows, order, index in ((student, ours, mine), (teacher, theirs, other))
        ]
        last = [place == len(ours) - 1, place == len(theirs) - 1]
        if last == [True, True] and set(kinds) <= set(HEADS):
            _check_heads(student[mine], teacher[other], mine)
        elif kinds[0] != kinds[1] or last[0] != last[1]:
            raise PruneError(
                f"row {mine} differs: {kinds[0]} in the student, {kinds[1]} in the teacher{_count(ours, theirs)}"
            )
        if read[0] != read[1]:
            raise PruneError(
                f"row {mine} ({kinds[0]}) differs: it reads the rows {read[0]} in the student, {read[1]} in the teacher"
            )
    return list(zip(ours, theirs))


def _count(ours: Sequence[int], theirs: Sequence[int]) -> str:
    return "" if len(ours) == len(theirs) else f" (which have {len(ours)} and {len(theirs)} rows)"


def _check_heads(student: nn.Module, teacher: nn.Module, row: int) -> None:
    for name, text in (("na", "anchors"), ("reg_max", "bins of a distance")):
        mine, other = getattr(student, name, 0), getattr(teacher, name, 0)
        if mine != other and (name == "reg_max" or not (mine and other)):
            raise PruneError(f"row {row} (the head) differs: {mine} {text} in the student, {other} in the teacher")
    strides = [[float(one) for one in head.strides] for head in (student, teacher)]  # type: ignore[union-attr]
    if strides[0] != strides[1]:
        raise PruneError(
            f"row {row} (the head) differs: strides {strides[0]} in the student, {strides[1]} in the teacher"
        )


def make_twins(student: nn.Module, teacher: nn.Module, choose: Choose, forward: Forward, image: Tensor) -> Twins:
    """Copies two networks and leaves in the copies only the blocks that both have.

    Args:
        student, teacher: left as they are.
        choose: from names and modules of a chain's blocks, and how many stay, which of them do.
        forward: runs a network.
        image: (1, C, H, W) that both take.

    Raises:
        PruneError: the pair does not allow it; names the row.
    """
    pairs = pair_rows(rows_of(student, "student"), rows_of(teacher, "teacher"))
    mine, other = copy.deepcopy(student), copy.deepcopy(teacher)
    before = [_paths(mine), _paths(other)]
    twins = Twins(mine, other, {}, {}, pairs)
    ours, theirs = rows_of(mine, "student"), rows_of(other, "teacher")
    for row, its in pairs:
        _same_nesting(ours, theirs, row, its)
        if hasattr(theirs[its], "ia") and not hasattr(ours[row], "ia"):
            theirs[its].fuse()  # type: ignore[operator]  # implicit layers go into the convolutions
        _align(twins, before, ours[row], theirs[its], row, choose)
    if twins.blocks:
        for model, who in ((mine, "student"), (other, "teacher")):
            _fit_inputs(model, forward, image, who)
    for model, named, paths in ((mine, twins.student_names, before[0]), (other, twins.teacher_names, before[1])):
        named |= {name: paths[thing] for thing, name in _paths(model).items() if thing in paths}
    for row, its in pairs:
        _compare(twins, ours[row], theirs[its], row)
    return twins


def _paths(model: nn.Module) -> dict[Any, str]:
    """The path of every module and parameter."""
    return {**{m: n for n, m in model.named_modules()}, **{p: n for n, p in model.named_parameters()}}


def _same_nesting(ours: nn.Sequential, theirs: nn.Sequential, row: int, its: int) -> None:
    """Makes a single block a chain of one where it is a chain of several in the other network."""
    for rows, index, other in ((ours, row, theirs[its]), (theirs, its, ours[row])):
        layer = rows[index]
        if (
            type(other) is nn.Sequential
            and type(layer) is not nn.Sequential
            and len(other)
            and type(other[0]) is type(layer)
        ):
            chain = nn.Sequential(layer)
            for mark in ("i", "f", "type"):
                setattr(chain, mark, getattr(layer, mark))
            rows[index] = chain


def _align(
    twins: Twins, before: Sequence[dict[Any, str]], ours: nn.Module, theirs: nn.Module, row: int, choose: Choose
) -> None:
    """Takes out of two lists of inner blocks, and of all that are within them, what only one network has."""
    if type(ours) in CHAINS and type(theirs) is type(ours) and len(ours) != len(theirs):  # type: ignore[arg-type]
        mine, other = list(ours.children()), list(theirs.children())
        if len({type(block) for block in (*mine, *other)}) > 1:
            raise PruneError(f"row {row} differs: it is built of other layers in the student than in the teacher")
        in_turn, count = isinstance(ours, nn.Sequential), min(len(mine), len(other))
        shortcut = all(getattr(block, "add", False) for block in (*mine, *other))
        kept = list(range(count))
        if in_turn and shortcut and len(other) > count:
            kept = choose([before[1][block] for block in other], other, count)
        for blocks, stay in ((ours, range(count)), (theirs, kept)):
            for number in reversed(range(len(blocks))):  # type: ignore[arg-type]
                if number not in stay:
                    del blocks[number]  # type: ignore[operator]
        name = before[0].get(ours, f"model.{row}")
        twins.blocks.append(Blocks(name, row, tuple(kept), len(mine), len(other), in_turn, shortcut))
    for name, part in ours.named_children():
        partner = dict(theirs.named_children()).get(name)
        if partner is not None:
            _align(twins, before, part, partner, row, choose)


def _fit_inputs(model: nn.Module, forward: Forward, image: Tensor, who: str) -> None:
    """Takes off a convolution's last input channels where the last maps of the concatenation before it are gone."""

    def fit(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found = inputs[0].shape[1]
        if isinstance(module, nn.Conv2d) and module.groups == 1 and found < module.in_channels:
            module.in_channels = found
            module.weight = nn.Parameter(module.weight.detach()[:, :found].clone())

    layers = [module for module in model.modules() if isinstance(module, CONVOLUTIONS)]
    hooks = [layer.register_forward_pre_hook(fit) for layer in layers]
    try:
        with torch.no_grad():
            forward(model, image.to(next(model.parameters())))
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise PruneError(f"the {who} does not work without the blocks that only it has: {reason}") from error
    finally:
        for hook in hooks:
            hook.remove()


def _compare(twins: Twins, ours: nn.Module, theirs: nn.Module, row: int) -> None:
    """Refuses two rows whose layers are of other kinds or shapes of kernels; notes what has no weights and differs."""
    mine, other = (
        {name: part for name, part in layer.named_modules() if name and name.split(".")[0] not in TRAINING_PARTS}
        for layer in (ours, theirs)
    )
    where = f"row {row} ({ours.type})"
    _check_folded(mine, other, where)
    for name in {**mine, **other}:
        module, partner = mine.get(name), other.get(name)
        if module is None or partner is None:
            who, kind = ("teacher", type(partner)) if module is None else ("student", type(module))
            raise PruneError(f"{where} differs: only the {who} has {kind.__name__} {name!r}")
        if isinstance(module, CONVOLUTIONS) and isinstance(partner, CONVOLUTIONS):
            _compare_convolutions(module, partner, where)
        elif _has_tensors(module) and type(module) is not type(partner):
            kinds_found = f"{type(module).__name__} in the student, {type(partner).__name__} in the teacher"
            raise PruneError(f"{where} differs: {name!r} is a {kinds_found}")
        elif next(module.children(), None) is None and _plain(module) != _plain(partner):
            twins.notes.append((row, f"{_plain(module)} in the student, {_plain(partner)} in the teacher"))
    for name, module in ours.named_modules():
        partner = theirs.get_submodule(name) if name in other or not name else None
        if getattr(module, "add", None) != getattr(partner, "add", None):  # the widths decide, or the yaml
            twins.notes.append((row, f"a shortcut in the {'student' if module.add else 'teacher'} only"))
            module.add = partner.add = False  # type: ignore[assignment, union-attr]  # so that no channels are tied


def _check_folded(student: dict[str, nn.Module], teacher: dict[str, nn.Module], where: str) -> None:
    """Refuses a row that has BatchNorm in one network and, folded for inference, none in the other."""
    norms = [[name for name, one in part.items() if isinstance(one, nn.BatchNorm2d)] for part in (student, teacher)]
    for who, part, mine, other in (("student", student, norms[0], norms[1]), ("teacher", teacher, norms[1], norms[0])):
        if any(isinstance(part.get(name), nn.Identity) for name in other) or (other and not mine):
            raise PruneError(
                f"{where}: the {who}'s BatchNorm was folded into its convolutions for inference; give the checkpoint "
                "of its training, or start from scratch"
            )


def _compare_convolutions(ours: nn.Module, theirs: nn.Module, where: str) -> None:
    for name in GEOMETRY:
        mine, other = getattr(ours, name), getattr(theirs, name)
        if mine != other:
            raise PruneError(
                f"{where} differs: a {name.replace('_', ' ')} of {mine} in the student, {other} in the teacher"
            )
    if (ours.bias is None) != (theirs.bias is None):
        raise PruneError(f"{where} differs: a convolution has a bias in one network and none in the other")


def _has_tensors(module: nn.Module) -> bool:
    """Whether a module has parameters or buffers of its own."""
    return any(True for part in (module._parameters, module._buffers) for one in part.values() if one is not None)


def _plain(module: nn.Module) -> str:
    """A layer as PyTorch writes it, without whether it works in place."""
    if _has_tensors(module):
        return type(module).__name__
    return f"{type(module).__name__}({module.extra_repr()})".replace(", inplace=True", "").replace("inplace=True", "")
