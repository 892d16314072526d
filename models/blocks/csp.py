"""YOLOv7's residual units and the three cross-stage-partial arrangements (CSPNet, 2020; Scaled-YOLOv4, 2021) of each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from models.blocks.bottleneck import Bottleneck
from models.blocks.conv import Conv
from models.blocks.ghost import GhostBottleneck
from models.blocks.rep import RepConv


class Res(nn.Module):
    """ResNet's bottleneck: 1 x 1, 3 x 3, 1 x 1, with a shortcut where the widths are equal (He et al., 2015)."""

    def __init__(
        self, in_channels: int, out_channels: int, shortcut: bool = True, groups: int = 1, expansion: float = 0.5
    ) -> None:
        super().__init__()
        hidden = int(out_channels * expansion)
        self.cv1 = Conv(in_channels, hidden)
        self.cv2 = self.middle(hidden, groups)
        self.cv3 = Conv(hidden, out_channels)
        self.add = shortcut and in_channels == out_channels

    @staticmethod
    def middle(width: int, groups: int) -> nn.Module:
        """The 3 x 3 convolution."""
        return Conv(width, width, 3, 1, groups=groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.cv3(self.cv2(self.cv1(x)))
        return x + y if self.add else y


class RepRes(Res):
    """Res with a RepConv in the middle."""

    @staticmethod
    def middle(width: int, groups: int) -> nn.Module:
        return RepConv(width, width, 3, 1, groups=groups)


class RepBottleneck(Bottleneck):
    """Bottleneck with a RepConv as the second convolution."""

    def __init__(
        self, in_channels: int, out_channels: int, shortcut: bool = True, groups: int = 1, expansion: float = 0.5
    ) -> None:
        super().__init__(in_channels, out_channels, shortcut, groups, (1, 3), expansion)
        self.cv2 = RepConv(int(out_channels * expansion), out_channels, 3, 1, groups=groups)  # type: ignore[assignment]


def _chain(unit: Callable[..., nn.Module], width: int, repeats: int) -> nn.Sequential:
    return nn.Sequential(*(unit(width, width) for _ in range(repeats)))


class CSPA(nn.Module):
    """cv3([m(cv1(x)), cv2(x)]).

    Args:
        repeats: number of units.
        shortcut, groups: handed to each unit; None leaves the unit's own default.
        expansion: hidden width as a share of `out_channels`.
        unit: builds one residual unit from its input and output width.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        repeats: int = 1,
        shortcut: bool = True,
        groups: int | None = None,
        expansion: float = 0.5,
        *,
        unit: Callable[..., nn.Module] = Bottleneck,
    ) -> None:
        super().__init__()
        hidden = int(out_channels * expansion)
        self.cv1 = Conv(in_channels, hidden)
        self.cv2 = Conv(in_channels, hidden)
        self.cv3 = Conv(2 * hidden, out_channels)
        self.m = _chain(_bound(unit, shortcut, groups), hidden, repeats)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class CSPB(nn.Module):
    """cv3([m(y), cv2(y)]) with y = cv1(x); arguments as CSPA, without the expansion."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        repeats: int = 1,
        shortcut: bool = False,
        groups: int | None = None,
        expansion: float = 0.5,
        *,
        unit: Callable[..., nn.Module] = Bottleneck,
    ) -> None:
        super().__init__()
        hidden = int(out_channels)
        self.cv1 = Conv(in_channels, hidden)
        self.cv2 = Conv(hidden, hidden)
        self.cv3 = Conv(2 * hidden, out_channels)
        self.m = _chain(_bound(unit, shortcut, groups), hidden, repeats)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.cv1(x)
        return self.cv3(torch.cat((self.m(y), self.cv2(y)), 1))


class CSPC(nn.Module):
    """cv4([cv3(m(cv1(x))), cv2(x)]); arguments as CSPA."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        repeats: int = 1,
        shortcut: bool = True,
        groups: int | None = None,
        expansion: float = 0.5,
        *,
        unit: Callable[..., nn.Module] = Bottleneck,
    ) -> None:
        super().__init__()
        hidden = int(out_channels * expansion)
        self.cv1 = Conv(in_channels, hidden)
        self.cv2 = Conv(in_channels, hidden)
        self.cv3 = Conv(hidden, hidden)
        self.cv4 = Conv(2 * hidden, out_channels)
        self.m = _chain(_bound(unit, shortcut, groups), hidden, repeats)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cv4(torch.cat((self.cv3(self.m(self.cv1(x))), self.cv2(x)), 1))


def _bound(unit: Callable[..., nn.Module], shortcut: bool, groups: int | None) -> Callable[..., nn.Module]:
    """The unit with a block's own arguments; a ghost bottleneck has none."""
    if unit is GhostBottleneck:
        return unit
    return partial(unit, shortcut=shortcut) if groups is None else partial(unit, shortcut=shortcut, groups=groups)


UNITS: dict[str, Callable[..., nn.Module]] = {
    "Res": Res,
    "ResX": partial(Res, groups=32),
    "RepRes": RepRes,
    "RepResX": partial(RepRes, groups=32),
    "RepBottleneck": RepBottleneck,
}
_CSP_UNITS: dict[str, Callable[..., nn.Module]] = {
    "Bottleneck": partial(Bottleneck, expansion=1.0),
    "RepBottleneck": partial(RepBottleneck, expansion=1.0),
    "Res": partial(Res, expansion=0.5),
    "RepRes": partial(RepRes, expansion=0.5),
    "ResX": partial(Res, groups=32, expansion=1.0),
    "RepResX": partial(RepRes, groups=32, expansion=0.5),
    "Ghost": GhostBottleneck,
}
CSP_BLOCKS: dict[str, Callable[..., nn.Module]] = {
    f"{unit}CSP{letter}": partial(block, unit=factory)
    for unit, factory in _CSP_UNITS.items()
    for letter, block in (("A", CSPA), ("B", CSPB), ("C", CSPC))
}
