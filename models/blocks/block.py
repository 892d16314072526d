"""How a row of an architecture yaml becomes a module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Block:
    """How a yaml row becomes a module.

    Attributes:
        module: builds it.
        widths: with how many widths `module` is called first: 2 the input's and the output's, the latter being the
            row's first argument times the width multiple; 1 the input's; 0 none.
        repeats: the number of repeats is an argument of `module`, after the widths; otherwise the module is repeated.
        order: keywords of the remaining arguments in the order of the yaml; empty for the constructor's own order.
    """

    module: Callable[..., nn.Module]
    widths: int = 2
    repeats: bool = False
    order: tuple[str, ...] = ()


# Generations of the format disagree on what follows the groups: first only the activation, later the dilation and then
# the activation. The parser drops "dilation" from the order where the value there can only be an activation.
CONV_ORDER = ("kernel", "stride", "padding", "groups", "dilation", "activation")
