"""Widths that no row of an architecture gives: what a pruned model keeps in its yaml, and is built with again.

channel_plan:
  model.0.conv: [null, 24]      # input and output channels of a convolution; null: as the rows say
  model.0.bn: [24]              # of a BatchNorm, or of a parameter with a number for each channel
  model.1.conv: [24, null]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.parser import gather_inputs
from utils.errors import UserError
from utils.text import MAX_SHOWN, printable, shown

PLAN_KEY = "channel_plan"
CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)

ChannelPlan = dict[str, list[int | None]]


def plan_from_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor]) -> ChannelPlan:
    """The plan with which a model would have the widths of these weights.

    Args:
        model: as its rows build it; its values do not matter, so it may be on the meta device.
        state_dict: of the same layers with other widths, such as those of a pruned model.

    Returns:
        An entry for each module and parameter whose widths differ; empty where none do.
    """
    plan: ChannelPlan = {}
    for name, module in model.named_modules():
        weight = state_dict.get(f"{name}.weight")
        if weight is None:
            continue
        if isinstance(module, CONVOLUTIONS) and weight.dim() == 4:
            built, found = (module.in_channels, module.out_channels), _convolution_widths(module, weight)
            if found != built:
                plan[name] = [new if new != old else None for old, new in zip(built, found)]
        elif isinstance(module, nn.BatchNorm2d) and weight.shape[0] != module.num_features:
            plan[name] = [weight.shape[0]]
    for name, parameter in model.named_parameters():
        shape = tuple(state_dict[name].shape) if name in state_dict else ()
        if _by_channel(parameter) and len(shape) == 4 and shape[1] != parameter.shape[1]:
            plan[name] = [shape[1]]
    return plan


def _convolution_widths(module: nn.Conv2d | nn.ConvTranspose2d, weight: Tensor) -> tuple[int, int]:
    """(input, output) channels of a convolution like `module` with this weight."""
    if _is_depthwise(module):
        return weight.shape[0], weight.shape[0]
    first, second = weight.shape[0], weight.shape[1] * module.groups
    return (first, second) if isinstance(module, nn.ConvTranspose2d) else (second, first)


def _is_depthwise(module: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    return module.groups == module.in_channels == module.out_channels > 1


def _by_channel(parameter: Tensor) -> bool:
    """Whether a parameter is (1, C, 1, 1)."""
    return parameter.dim() == 4 and parameter.shape[1] == parameter.numel()


def apply_plan(model: nn.Module, plan: Any, where: str) -> None:
    """Gives the modules of a model the widths of a plan, with the weights of a new start.

    Args:
        model: as its rows build it; changed in place.
        plan: see the head of this file.
        where: what to call the architecture in an error.

    Raises:
        UserError: the plan is none, or names what the model does not have.
    """
    if not isinstance(plan, Mapping):
        raise UserError(f"{where}: {PLAN_KEY} must map modules to widths, found {shown(plan)}")
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    for name, widths in plan.items():
        here = f"{where}: {PLAN_KEY}, {printable(name, MAX_SHOWN)}"
        module = modules.get(name)
        count = 2 if isinstance(module, CONVOLUTIONS) else 1
        if not isinstance(widths, list) or len(widths) != count or not all(_is_width(width) for width in widths):
            raise UserError(f"{here}: expected {count} number(s) of channels, found {shown(widths)}")
        if isinstance(module, CONVOLUTIONS):
            _resize_convolution(module, widths[0] or module.in_channels, widths[1] or module.out_channels)
        elif isinstance(module, nn.BatchNorm2d):
            _resize_batchnorm(module, widths[0] or module.num_features)
        elif name in parameters and _by_channel(parameters[name]):
            owner, _, leaf = name.rpartition(".")
            value = parameters[name].new_zeros(1, widths[0] or parameters[name].shape[1], 1, 1)
            value += parameters[name].detach().mean()  # implicit layers start around 0 or 1
            setattr(model.get_submodule(owner), leaf, nn.Parameter(value))
        else:
            raise UserError(f"{here}: this architecture has no such layer; the plan belongs to another one")


def _is_width(value: Any) -> bool:
    return value is None or (type(value) is int and 0 < value < 100_000)


def _resize_convolution(module: nn.Conv2d | nn.ConvTranspose2d, inputs: int, outputs: int) -> None:
    depthwise, weight = _is_depthwise(module), module.weight
    module.in_channels, module.out_channels = inputs, outputs
    module.groups = outputs if depthwise else module.groups
    first, second = (inputs, outputs) if isinstance(module, nn.ConvTranspose2d) else (outputs, inputs)
    module.weight = nn.Parameter(weight.new_empty(first, second // module.groups, *weight.shape[2:]))
    if module.bias is not None:
        module.bias = nn.Parameter(module.bias.new_empty(outputs))
    module.reset_parameters()


def _resize_batchnorm(module: nn.BatchNorm2d, width: int) -> None:
    module.num_features = width
    for name in ("weight", "bias"):
        value = getattr(module, name)
        setattr(module, name, nn.Parameter(value.new_empty(width)))
    for name in ("running_mean", "running_var"):
        setattr(module, name, getattr(module, name).new_empty(width))
    module.reset_parameters()


@torch.no_grad()
def check_plan(layers: nn.Sequential, in_channels: int, where: str) -> None:
    """Tries all layers on a small image: an empty batch would not show that a BatchNorm does not fit.

    Raises:
        UserError: two layers do not fit each other; names the first that does not fit what it reads.
    """
    side = int(max(layers[-1].strides))  # type: ignore[arg-type]
    x = torch.zeros(1, in_channels, side, side)
    outputs: list[Any] = []
    layers.eval()
    for index, layer in enumerate(layers):
        inputs = gather_inputs(layer.f, x, outputs)  # type: ignore[arg-type]
        try:
            if index == len(layers) - 1:
                layer.raw_maps(inputs), layer.auxiliary_maps(inputs)  # type: ignore[operator]
            else:
                x = layer(inputs)
        except (RuntimeError, ValueError) as error:
            reason = printable((str(error).splitlines() or [type(error).__name__])[0], 200)
            raise UserError(
                f"{where}, layer {index} ({layer.type}): the {PLAN_KEY} does not fit: {reason}; "
                "use the plan as it was written"
            ) from error
        outputs.append(x)
    layers.train()
