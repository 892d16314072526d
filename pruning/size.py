"""How large a network is, as a function of its layers' widths, and how long it takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pruning.graph import CONVOLUTIONS, Forward

Removed = Mapping[tuple[str, str], int]  # (module, side) -> number of channels that are gone there


@dataclass(frozen=True)
class Size:
    """The size of a network.

    Attributes:
        channels: output channels of all convolutions.
        params: numbers in convolutions, BatchNorm and numbers by channel.
        gflops: 10^9 operations, twice the multiply-accumulates of the convolutions, for the image of the trace.
    """

    channels: int
    params: int
    gflops: float


@dataclass
class _Convolution:
    """What a convolution's size follows from; `positions` is where its kernel is applied."""

    inputs: int
    outputs: int
    groups: int
    kernel: int
    bias: bool
    positions: int = 0


class SizeModel:
    """Counts a network for any widths, from one run at full width.

    Args:
        model: the network.
        image: (1, C, H, W).
        forward: runs it.
    """

    def __init__(self, model: nn.Module, image: Tensor, forward: Forward) -> None:
        self.convolutions: dict[str, _Convolution] = {}
        self.others: dict[str, tuple[int, int]] = {}  # channels, and numbers a channel
        counted: set[int] = set()
        hooks = []
        for name, module in model.named_modules():
            if isinstance(module, CONVOLUTIONS):
                kernel = module.kernel_size[0] * module.kernel_size[1]
                self.convolutions[name] = _Convolution(
                    module.in_channels, module.out_channels, module.groups, kernel, module.bias is not None
                )
                hooks.append(module.register_forward_hook(_positions_into(self.convolutions[name])))
            elif isinstance(module, nn.BatchNorm2d):
                self.others[name] = (module.num_features, 2 if module.affine else 0)
            else:
                continue
            counted |= {id(parameter) for parameter in module.parameters()}
        self.others |= {n: (p.numel(), 1) for n, p in model.named_parameters() if id(p) not in counted}
        modes = [(module, module.training) for module in model.modules()]
        with torch.no_grad():
            forward(model, image)
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode

    def count(self, removed: Removed) -> Size:
        """The size with so many channels gone at each side of each module."""
        channels = params = operations = 0
        for name, conv in self.convolutions.items():
            outputs = conv.outputs - removed.get((name, "out"), 0)
            inputs = conv.inputs - removed.get((name, "in"), 0)
            depthwise = conv.groups == conv.inputs == conv.outputs
            weights = outputs * conv.kernel * (1 if depthwise else inputs // conv.groups)
            channels += outputs
            params += weights + (outputs if conv.bias else 0)
            operations += 2 * weights * conv.positions
        params += sum((width - removed.get((name, "both"), 0)) * each for name, (width, each) in self.others.items())
        return Size(channels, params, operations * 1e-9)


def _positions_into(conv: _Convolution) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    """A hook that notes at how many positions a convolution multiplies: for a transposed one, those of its input."""

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        places = inputs[0] if isinstance(module, nn.ConvTranspose2d) else output
        conv.positions += places.shape[2] * places.shape[3]

    return count


def measure_latency(models: Sequence[nn.Module], image: Tensor, rounds: int = 30, warmup: int = 5) -> list[float]:
    """Median seconds of a forward pass of each model, measured in turns: a change of the machine's speed hits all.

    Args:
        models: in evaluation mode, on the device of `image`.
        image: (N, C, H, W).
        rounds: measured passes of each.
        warmup: passes of each before.
    """
    seconds: list[list[float]] = [[] for _ in models]
    with torch.inference_mode():
        for turn in range(rounds + warmup):
            for number, model in enumerate(models):
                _wait_for(image.device)
                began = time.perf_counter()
                model(image)
                _wait_for(image.device)
                if turn >= warmup:
                    seconds[number].append(time.perf_counter() - began)
    return [statistics.median(values) for values in seconds]


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
