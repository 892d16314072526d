"""Exponential moving average of a model's weights, which is what gets evaluated and kept."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn


class ModelEMA:
    """A copy of a model that follows it slowly (Polyak averaging with a ramp).

    The decay after n updates is decay * (1 - exp(-n / ramp)), so the average follows quickly at first. Every
    floating entry of the state takes part, BatchNorm statistics included; integer entries keep their first value.

    Args:
        model: the model to follow; it is copied once.
        decay: limit of the decay.
        ramp: updates until the decay reaches 63 % of its limit.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, ramp: float = 2000.0) -> None:
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.updates = 0
        self.limit = decay
        self.ramp = ramp

    def decay(self, updates: int) -> float:
        """The decay of the given update, from 0 to the limit."""
        return self.limit * (1 - math.exp(-updates / self.ramp))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """One step towards the model, after an optimizer step."""
        self.updates += 1
        averages, currents = [], []
        source = model.state_dict()
        for key, average in self.module.state_dict().items():
            if average.dtype.is_floating_point:
                averages.append(average)
                currents.append(source[key].detach())
        torch._foreach_lerp_(averages, currents, 1 - self.decay(self.updates))
