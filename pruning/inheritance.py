"""What a student takes from its teacher, tensor by tensor, and the account of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pruning.channel_match import FRESH, Places, output_channels
from pruning.errors import PruneError
from pruning.graph import CONVOLUTIONS
from pruning.pairing import Blocks, Twins

ANCHORS = ("anchors", "anchor_grid")


@dataclass(frozen=True)
class TensorMap:
    """Where the numbers of one tensor of the student come from.

    Attributes:
        target: its path in the student.
        source: the path in the teacher's copy.
        outputs: the dimension of output channels, and the teacher's channel of each (FRESH: none); None: all alike.
        inputs: the same for input channels. An output that is inherited gets zeros for the inputs that are not.
    """

    target: str
    source: str
    outputs: tuple[int, Tensor] | None = None
    inputs: tuple[int, Tensor] | None = None

    def counts(self, target: Tensor) -> tuple[int, int]:
        """How many numbers of the tensor are the teacher's, and how many are zeros for the channels that it lacks."""
        shares = [int((side[1] != FRESH).sum()) / max(len(side[1]), 1) for side in (self.outputs, self.inputs) if side]
        filled = round(target.numel() * (shares[0] if shares else 1))
        inherited = round(filled * (shares[1] if len(shares) > 1 else 1))
        return inherited, filled - inherited

    @torch.no_grad()
    def write(self, target: Tensor, source: Tensor) -> None:
        """Copies the numbers into the student's tensor, in place."""
        if self.outputs is None:
            target.copy_(source)
            return
        first, chosen = self.outputs
        at = (chosen != FRESH).nonzero().flatten()
        rows, taken = target.transpose(0, first), source.transpose(0, first)[chosen[at].to(source.device)].to(target)
        if self.inputs is not None:
            columns = self.inputs[1]
            known = (columns != FRESH).nonzero().flatten().to(target.device)
            blank = torch.zeros_like(rows[at.to(target.device)])
            blank[:, known] = taken[:, columns[columns != FRESH].to(target.device)]
            taken = blank
        rows[at.to(target.device)] = taken


@dataclass(frozen=True)
class InheritedLayer:
    """What became of one layer with weights.

    Attributes:
        name: its path in the student.
        row: number of the row that it is in.
        kind: the row's block.
        student, teacher: (input, output) channels of a convolution, (channels,) of another layer; () for the teacher
            where it has no such layer.
        numbers: of its parameters.
        inherited: of these, how many are the teacher's.
        zeros: how many start at zero, since they read channels that the teacher lacks.
        prediction: it makes what the network returns; its outputs follow from the classes.
    """

    name: str
    row: int
    kind: str
    student: tuple[int, ...]
    teacher: tuple[int, ...]
    numbers: int
    inherited: int
    zeros: int
    prediction: bool = False

    @property
    def fresh(self) -> int:
        """Parameters that are as the student was built."""
        return self.numbers - self.inherited - self.zeros

    @property
    def cut(self) -> bool:
        """Whether it is a convolution of which the teacher has more channels."""
        return any(theirs > ours for ours, theirs in self._widths())

    @property
    def widened(self) -> bool:
        """Whether it is a convolution of which the teacher has fewer channels."""
        return any(theirs < ours for ours, theirs in self._widths())

    def _widths(self) -> list[tuple[int, int]]:
        sides = list(zip(self.student, self.teacher))
        return sides[: 1 if self.prediction else 2] if len(self.student) == 2 else []

    def describe(self) -> str:
        """One line."""
        widths, theirs = (" -> ".join(map(str, sides)) for sides in (self.student, self.teacher))
        share = f"{self.inherited / max(self.numbers, 1):.0%} of {self.numbers:,} numbers inherited"
        origin = f"{widths} channels of the teacher's {theirs}, {share}" if theirs else f"{widths} channels, fresh"
        zeros = f", {self.zeros:,} zeros" if self.zeros else ""
        return f"{self.name} ({self.kind}): {origin}{zeros}"


@dataclass(frozen=True)
class Inheritance:
    """What a student inherited.

    Attributes:
        layers: every layer with weights, in the order of the student.
        blocks: where the student has another number of inner blocks than the teacher.
        importance: what chose the channels; empty where nothing was cut.
        classes: how many classes were inherited, and how many the student has.
        anchors: "teacher" where they are the teacher's, "student" where the numbers of anchors differ, empty where
            there are none.
        estimated: BatchNorm layers whose statistics were estimated anew.
        touched: rows whose outputs are not what the teacher's would be.
        notes: what else differs, a line each.
    """

    layers: list[InheritedLayer]
    blocks: list[Blocks]
    importance: str
    classes: tuple[int, int]
    anchors: str
    touched: tuple[int, ...]
    estimated: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def numbers(self) -> int:
        """Parameters of the student."""
        return sum(layer.numbers for layer in self.layers)

    @property
    def inherited(self) -> int:
        """Parameters that are the teacher's."""
        return sum(layer.inherited for layer in self.layers)

    @property
    def share(self) -> float:
        """The share of the student's parameters that are the teacher's."""
        return self.inherited / max(self.numbers, 1)

    @property
    def fresh_rows(self) -> list[int]:
        """Rows of which nothing is inherited."""
        taken = {layer.row for layer in self.layers if layer.inherited}
        return sorted({layer.row for layer in self.layers} - taken)

    def describe(self) -> str:
        """One line."""
        narrower, wider = sum(layer.cut for layer in self.layers), sum(layer.widened for layer in self.layers)
        share = "all" if self.inherited == self.numbers else f"{min(self.share, 0.999):.1%}"
        parts = [f"inherited {share} of {self.numbers:,} parameters from the teacher"]
        if narrower:
            parts.append(f"{narrower} convolutions are narrower (channels chosen by {self.importance})")
        if wider:
            parts.append(f"{wider} are wider (what the teacher lacks starts at zero)")
        fewer = sum(max(one.teacher - one.student, 0) for one in self.blocks)
        more = sum(max(one.student - one.teacher, 0) for one in self.blocks)
        parts += [f"{fewer} inner blocks are left out"] * bool(fewer) + [f"{more} inner blocks are fresh"] * bool(more)
        if self.fresh_rows:
            parts.append(f"nothing for row {', '.join(map(str, self.fresh_rows))}")
        parts.append(f"{self.classes[0]} of {self.classes[1]} classes")
        if self.anchors:
            parts.append(f"the {self.anchors}'s anchors")
        if self.estimated:
            parts.append(f"statistics of {self.estimated} BatchNorm layers estimated anew")
        return "; ".join([*parts, *self.notes])

    def table(self) -> list[str]:
        """A line for each layer."""
        return [layer.describe() for layer in self.layers]


def tensor_maps(student: nn.Module, twins: Twins, places: Places) -> list[TensorMap]:
    """The maps of all tensors of a student that have a counterpart in the teacher, anchors of another number left out.

    Raises:
        PruneError: a tensor whose channels are not followed has another shape in the teacher; names the row.
    """
    theirs = dict(twins.teacher.named_modules())
    in_copy = {original: name for name, original in twins.student_names.items()}
    maps: list[TensorMap] = []
    for name, module in student.named_modules():
        copied = in_copy.get(name, "")
        source = twins.as_teacher(copied)
        if source in theirs and source:
            maps += _maps_of(module, theirs[source], name, copied, source, places)
    return maps


def _maps_of(
    module: nn.Module, partner: nn.Module, name: str, copied: str, source: str, places: Places
) -> Iterator[TensorMap]:
    tensors = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    others = {**dict(partner.named_parameters(recurse=False)), **dict(partner.named_buffers(recurse=False))}
    for leaf, tensor in tensors.items():
        if leaf not in others:
            continue
        paths = f"{name}.{leaf}", f"{source}.{leaf}"
        both = places.get((copied, "both"), places.get((f"{copied}.{leaf}", "both")))
        if isinstance(module, CONVOLUTIONS) and (copied, "out") in places and module.groups in (1, module.in_channels):
            yield _of_convolution(module, leaf, paths, places[copied, "out"], places[copied, "in"])
        elif both is not None and tensor.dim():
            yield TensorMap(*paths, outputs=(1 if tensor.dim() == 4 else 0, both))
        elif tensor.shape == others[leaf].shape:
            yield TensorMap(*paths)
        elif leaf not in ANCHORS:
            raise PruneError(
                f"row {name.split('.')[1]} differs: {paths[0]} is {tuple(tensor.shape)} in the student, "
                f"{tuple(others[leaf].shape)} in the teacher, and its channels cannot be followed"
            )


def _of_convolution(
    module: nn.Conv2d | nn.ConvTranspose2d, leaf: str, paths: tuple[str, str], outputs: Tensor, inputs: Tensor
) -> TensorMap:
    first = 1 if module.transposed and module.groups == 1 else 0
    if leaf == "bias" or module.groups > 1:  # a depth-wise convolution's inputs are its outputs
        return TensorMap(*paths, outputs=(0, outputs))
    missing = module.in_channels - len(inputs)  # outputs of blocks that are fresh
    return TensorMap(*paths, (first, outputs), (1 - first, torch.cat((inputs, torch.full((missing,), FRESH)))))


def account(student: nn.Module, teacher: nn.Module, twins: Twins, maps: list[TensorMap]) -> list[InheritedLayer]:
    """What becomes of every layer with weights of a student."""
    rows = student.get_submodule("model")
    of = {one.target: one for one in maps}
    original = dict(teacher.named_modules())
    in_copy = {path: name for name, path in twins.student_names.items()}
    predictions = {twins.student_names[name] for name in output_channels(twins, ())}
    layers = []
    for name, module in student.named_modules():
        parameters = dict(module.named_parameters(recurse=False))
        if not parameters:
            continue
        source = twins.teacher_names.get(twins.as_teacher(in_copy.get(name, "")), "")
        partner = original[source] if source else None
        counts = [of[f"{name}.{leaf}"].counts(tensor) for leaf, tensor in parameters.items() if f"{name}.{leaf}" in of]
        row = int(name.split(".")[1])
        layers.append(
            InheritedLayer(
                name,
                row,
                str(rows.get_submodule(str(row)).type),
                _channels(module),
                () if partner is None else _channels(partner),
                sum(tensor.numel() for tensor in parameters.values()),
                sum(inherited for inherited, _ in counts),
                sum(zeros for _, zeros in counts),
                name in predictions,
            )
        )
    return layers


def _channels(module: nn.Module) -> tuple[int, ...]:
    if isinstance(module, CONVOLUTIONS):
        return module.in_channels, module.out_channels
    return (max(next(module.parameters(recurse=False)).shape, default=1),)
