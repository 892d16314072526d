"""YOLOv7's residual units, and three cross-stage-partial arrangements of each (CSPNet, 2020; Scaled-YOLOv4, 2021)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from models.blocks.bottleneck import Bottleneck
from models.blocks.conv import Conv
from models.blocks.extra.ghost import GhostBottleneck
from models.blocks.extra.swin import SwinTransformer2Block, SwinTransformerBlock
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


class CSPBlock(nn.Module):
    """Residual units on one branch, joined with a branch that skips them. The arrangement is one of

        A: cv3([m(cv1(x)), cv2(x)])
        B: cv3([m(y), cv2(y)]) with y = cv1(x)
        C: cv4([cv3(m(cv1(x))), cv2(x)])

    Args:
        repeats: number of units.
        shortcut, groups: of each unit; None leaves the unit's own.
        expansion: width of the branches as a share of `out_channels`; B has no use for it, its branches have all.
        arrangement: A, B or C.
        chain: builds the units from their width, `repeats`, `shortcut` and `groups`.
        default_shortcut: stands in for a `shortcut` of None.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        repeats: int = 1,
        shortcut: bool | None = None,
        groups: int | None = None,
        expansion: float = 0.5,
        *,
        arrangement: str,
        chain: Callable[[int, int, bool | None, int | None], nn.Module],
        default_shortcut: bool | None = None,
    ) -> None:
        super().__init__()
        self.skips_late = arrangement == "B"
        hidden = out_channels if self.skips_late else int(out_channels * expansion)
        self.cv1 = Conv(in_channels, hidden)
        self.cv2 = Conv(hidden if self.skips_late else in_channels, hidden)
        self.cv3 = Conv(hidden, hidden) if arrangement == "C" else Conv(2 * hidden, out_channels)
        self.cv4 = Conv(2 * hidden, out_channels) if arrangement == "C" else None
        self.m = chain(hidden, repeats, default_shortcut if shortcut is None else shortcut, groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.cv1(x)
        skipping = self.cv2(y if self.skips_late else x)
        processed = self.m(y)
        if self.cv4 is None:
            return self.cv3(torch.cat((processed, skipping), 1))
        return self.cv4(torch.cat((self.cv3(processed), skipping), 1))


def residual_chain(
    width: int, repeats: int, shortcut: bool | None, groups: int | None, *, unit: Callable[..., nn.Module]
) -> nn.Module:
    """Residual units one after another."""
    given = {"shortcut": shortcut, "groups": groups}
    options = {name: value for name, value in given.items() if value is not None}
    return nn.Sequential(*(unit(width, width, **options) for _ in range(repeats)))


def ghost_chain(width: int, repeats: int, shortcut: bool | None, groups: int | None) -> nn.Module:
    """Ghost bottlenecks one after another; they have no options."""
    return nn.Sequential(*(GhostBottleneck(width, width) for _ in range(repeats)))


def swin_chain(
    width: int, repeats: int, shortcut: bool | None, groups: int | None, *, block: Callable[..., nn.Module]
) -> nn.Module:
    """Window transformer layers with a head for each 32 channels; they have no options."""
    return block(width, width, max(width // 32, 1), repeats)


UNITS: dict[str, Callable[..., nn.Module]] = {
    "Res": Res,
    "ResX": partial(Res, groups=32),
    "RepRes": RepRes,
    "RepResX": partial(RepRes, groups=32),
    "RepBottleneck": RepBottleneck,
}
_CHAINS: dict[str, Callable[..., nn.Module]] = {
    "Bottleneck": partial(residual_chain, unit=partial(Bottleneck, expansion=1.0)),
    "RepBottleneck": partial(residual_chain, unit=partial(RepBottleneck, expansion=1.0)),
    "Res": partial(residual_chain, unit=partial(Res, expansion=0.5)),
    "RepRes": partial(residual_chain, unit=partial(RepRes, expansion=0.5)),
    "ResX": partial(residual_chain, unit=partial(Res, groups=32, expansion=1.0)),
    "RepResX": partial(residual_chain, unit=partial(RepRes, groups=32, expansion=0.5)),
    "Ghost": ghost_chain,
    "ST": partial(swin_chain, block=SwinTransformerBlock),
    "ST2": partial(swin_chain, block=SwinTransformer2Block),
}
# Their units have no shortcut in arrangement B, unless asked for.
_PLAIN_IN_B = ("Bottleneck", "RepBottleneck", "RepRes", "RepResX")
CSP_BLOCKS: dict[str, Callable[..., nn.Module]] = {
    f"{name}CSP{arrangement}": partial(
        CSPBlock,
        arrangement=arrangement,
        chain=chain,
        default_shortcut=False if arrangement == "B" and name in _PLAIN_IN_B else None,
    )
    for name, chain in _CHAINS.items()
    for arrangement in "ABC"
}
