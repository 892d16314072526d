"""Where a student's features enter the rest of a frozen teacher's head (CrossKD, arXiv 2306.11369)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .context import DistillSetup, Level
from .errors import DistillError
from .taps import Keep, unwrap
from .teacher import raw_maps

CrossHead = Callable[[list[Tensor]], Any]
"""From feature maps, one a level, to raw head maps or (decoded, raw): a head, or a function around one."""
LevelMaps = list[list[Tensor]]
"""For each level, the maps that cross there."""


class Crossing:
    """The maps that cross from student to teacher, and what the teacher makes of them.

    It holds copies of the teacher's last layers in float32, in evaluation mode, whose parameters require no gradients:
    gradients pass through them into the student. It is no module, so no module tree, optimizer or checkpoint sees them.

    Attributes:
        channels: for each level, (student's, teacher's) channels of each map that crosses there.
    """

    channels: list[list[tuple[int, int]]]

    def maps(self, student: list[Tensor], teacher: list[Tensor]) -> tuple[LevelMaps, LevelMaps]:
        """What crosses, of the student and of the teacher, given both networks' tapped features."""
        raise NotImplementedError

    def predict(self, maps: LevelMaps) -> list[Tensor]:
        """The teacher's raw head maps for maps with its channels, with gradients."""
        raise NotImplementedError

    def __deepcopy__(self, memo: dict[int, Any]) -> Crossing:
        return self  # the copy of a loss goes on with the same teacher


class InputCrossing(Crossing):
    """The student's tapped features replace the teacher's before its head, or some layers earlier.

    Args:
        levels: the pairs of layers.
        head: makes raw head maps of features of the teacher's layers, in their order.
        device: where the student computes.
    """

    def __init__(self, levels: Sequence[Level], head: CrossHead, device: torch.device) -> None:
        self.channels = [[(level.student_channels, level.teacher_channels)] for level in levels]
        self.head = frozen_copy(head, device) if isinstance(head, nn.Module) else head

    def maps(self, student: list[Tensor], teacher: list[Tensor]) -> tuple[LevelMaps, LevelMaps]:
        return [[s] for s in student], [[t] for t in teacher]

    def predict(self, maps: LevelMaps) -> list[Tensor]:
        return raw_maps(self.head([level[0] for level in maps]))


class BranchCrossing(Crossing):
    """The student's maps in the middle of the branches of an anchor-free head replace the teacher's there.

    Such a head has branches `cv2` for box sides and `cv3` for classes, for each level a sequence of three convolutions.

    Args:
        student, teacher: the two heads.
        at: the first convolution of the teacher's that is crossed into, 1 or 2.
        device: where the student computes.
    """

    def __init__(self, student: nn.Module | None, teacher: nn.Module | None, at: int, device: torch.device) -> None:
        pairs = list(zip(_branches(student, "student", at), _branches(teacher, "teacher", at)))
        self.channels = [[(_width(s[at]), _width(t[at])) for s, t in zip(*pair)] for pair in pairs]
        self._found: dict[tuple[str, int, int], Tensor] = {}
        for level, pair in enumerate(pairs):
            for who, branches in zip(("student", "teacher"), pair):
                for position, branch in enumerate(branches):
                    branch[at - 1].register_forward_hook(Keep(self._keeper((who, level, position))))
        self.rest = [[frozen_copy(branch[at:], device) for branch in branches] for _, branches in pairs]
        self._device = device

    def _keeper(self, slot: tuple[str, int, int]) -> Callable[[nn.Module, Any], None]:
        def keep(module: nn.Module, output: Tensor) -> None:
            del module
            self._found[slot] = output

        return keep

    def maps(self, student: list[Tensor], teacher: list[Tensor]) -> tuple[LevelMaps, LevelMaps]:
        """The maps of the latest pass of both networks; the tapped features play no part."""
        return self._latest("student"), self._latest("teacher")

    def _latest(self, who: str) -> LevelMaps:
        slots = [[(who, level, position) for position in range(2)] for level in range(len(self.rest))]
        return [[self._found[slot].to(self._device, torch.float32) for slot in level] for level in slots]

    def predict(self, maps: LevelMaps) -> list[Tensor]:
        return [
            torch.cat([branch(x) for branch, x in zip(branches, level)], dim=1)
            for branches, level in zip(self.rest, maps)
        ]


class HeadRest(nn.Module):
    """What is left of a network from its tapped layers to its raw head maps.

    Args:
        head: the head; asked for `raw_maps` where it has that method, else called.
        chains: for each level of the head, the layers between the tapped one and the head.
        order: for each level of the head, which of the tapped features it starts from.
    """

    def __init__(self, head: nn.Module, chains: Sequence[nn.Module], order: Sequence[int]) -> None:
        super().__init__()
        self.head = head
        self.chains = nn.ModuleList(chains)
        self.order = tuple(order)

    def forward(self, features: Sequence[Tensor]) -> Any:
        inputs = [chain(features[index]) for chain, index in zip(self.chains, self.order)]
        direct = getattr(self.head, "raw_maps", None)
        return self.head(inputs) if direct is None else direct(inputs)


def make_crossing(setup: DistillSetup, at: int) -> Crossing:
    """The crossing for a pair of networks.

    Without `setup.cross_head`, the rest of the teacher is found from its `model`, a sequence of layers with `.f` (what
    each reads) and the head at its end.

    Args:
        setup: the networks and the pairs of tapped layers.
        at: 0: the tapped features cross; 1 or 2: the maps before that convolution of an anchor-free head's branches.

    Raises:
        DistillError: the rest of the head cannot be found, or the heads have no such branches.
    """
    if setup.student is None or setup.teacher is None:
        raise DistillError("crosskd runs a part of the teacher; give the networks")
    device = next(setup.student.parameters()).device
    if not at:
        head = rest_of_head(setup.teacher, setup.levels) if setup.cross_head is None else setup.cross_head
        return InputCrossing(setup.levels, head, device)
    heads = [getattr(unwrap(model), "head", None) for model in (setup.student, setup.teacher)]
    crossing = BranchCrossing(heads[0], heads[1], at, device)
    if len(crossing.channels) != len(setup.levels):
        raise DistillError(
            f"kd_losses.crosskd: the heads have {len(crossing.channels)} levels in common, {len(setup.levels)} layers "
            "are paired; set student_kd_layers and teacher_kd_layers to auto"
        )
    return crossing


def rest_of_head(teacher: nn.Module, levels: Sequence[Level]) -> HeadRest:
    """The layers that follow a teacher's tapped ones, down to its raw head maps.

    Raises:
        DistillError: the network is not built that way, or the head needs more than the tapped layers.
    """
    network = unwrap(teacher)
    layers, head = getattr(network, "model", None), getattr(network, "head", None)
    sources = getattr(head, "f", None)
    tapped = [level.teacher_layer for level in levels]
    if not isinstance(layers, nn.Sequential) or not isinstance(sources, list | tuple) or isinstance(tapped[0], str):
        raise DistillError(
            "kd_losses.crosskd: the rest of the teacher's head cannot be found here; give cross_head, the head or a "
            "function from the features of teacher_kd_layers to raw head maps"
        )
    count = len(getattr(network, "stride", sources))  # inputs of auxiliary branches come after those of the head
    chains, order = [], []
    for source in sources[:count]:
        chain, start = _chain(layers, source if source >= 0 else len(layers) - 1 + source, tapped)
        chains.append(nn.Sequential(*(layers[index] for index in chain)))
        order.append(tapped.index(start))
    return HeadRest(head, chains, order)  # type: ignore[arg-type]


def _chain(layers: nn.Sequential, index: int, tapped: Sequence[int | str]) -> tuple[list[int], int]:
    """The layers from a tapped one (not included) to a given one, and the tapped one."""
    last = index
    chain: list[int] = []
    while index not in tapped:
        source = getattr(layers[index], "f", None)
        chain.insert(0, index)
        index = -1 if not isinstance(source, int) else source if source >= 0 else index + source
        if index < 0:
            raise DistillError(
                f"kd_losses.crosskd: layer {last} feeds the teacher's head and does not follow from one of "
                f"teacher_kd_layers {list(tapped)} alone; list a layer for every level of its head, or auto"
            )
    return chain, index


def frozen_copy(module: nn.Module, device: torch.device) -> nn.Module:
    """A copy in float32 and evaluation mode whose parameters require no gradients."""
    return copy.deepcopy(module).to(device, torch.float32).eval().requires_grad_(False)


def _branches(head: nn.Module | None, who: str, at: int) -> list[tuple[nn.Sequential, nn.Sequential]]:
    boxes, classes = getattr(head, "cv2", None), getattr(head, "cv3", None)
    if not isinstance(boxes, nn.ModuleList) or not isinstance(classes, nn.ModuleList):
        raise DistillError(
            f"kd_losses.crosskd: at is {at}, but the {who}'s head has no branches cv2 and cv3 (YOLOv8); set at: 0"
        )
    return list(zip(boxes, classes))  # type: ignore[arg-type]


def _width(module: nn.Module) -> int:
    """Channels that a convolution, with or without what follows it, takes."""
    return next(parameter for parameter in module.parameters() if parameter.ndim == 4).shape[1]
