"""Training that makes unimportant channels visible: an L1 penalty on the scales of BatchNorm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pruning.errors import PruneError

SCHEDULES = ("constant", "decay", "ramp")
LEAST_FACTOR = 0.1
EDGES = (0.001, 0.01, 0.05, 0.1, 0.5)


def batchnorm_scales(model: nn.Module) -> Tensor:
    """The absolute scales of all BatchNorm channels of a model, (channels,) on the CPU."""
    scales = [module.weight.detach().abs().flatten().float().cpu() for module in _norms(model)]
    if not scales:
        raise PruneError("this model has no BatchNorm scales; give the checkpoint of a training, before any folding")
    return torch.cat(scales)


def _norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.affine]


class Strength(NamedTuple):
    """What the first batch of a training shows: a table to print, what is wrong, and items that are 0 by nature."""

    table: str
    warnings: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()


class SparsityLoss(nn.Module):
    """The sum of all BatchNorm scales' absolute values (Liu et al., Network Slimming, 2017), as an extra loss.

    It has no parameters of its own: those that it acts on are the model's.

    Args:
        model: whose BatchNorm is penalised.
        strength: of the penalty for one image, which is the gradient of every scale.
        schedule: "constant"; "decay" falls linearly to a tenth over the training, so that the end recovers; "ramp"
            rises linearly from a tenth, for a model that would not survive a sudden penalty.
    """

    layers: tuple[int, ...] = ()

    def __init__(self, model: nn.Module, strength: float, schedule: str = "decay") -> None:
        super().__init__()
        if schedule not in SCHEDULES:
            raise PruneError(f"unknown sparsity schedule {schedule!r}; known: {', '.join(SCHEDULES)}")
        if not strength > 0:
            raise PruneError(f"the sparsity's strength is {strength:g}; expected more than 0, such as 0.001")
        batchnorm_scales(model)  # refuses a model without any
        self.strength, self.schedule, self.factor = strength, schedule, 1.0
        self.scales = [module.weight for module in _norms(model)]

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Sets the strength of an epoch."""
        done = epoch / max(epochs - 1, 1)
        share = {"constant": 0.0, "decay": done, "ramp": 1 - done}[self.schedule]
        self.factor = 1 - (1 - LEAST_FACTOR) * share

    def forward(
        self,
        images: Tensor,
        predictions: Sequence[Tensor],
        features: Sequence[Tensor],
        targets: Tensor,
        *,
        detection_loss: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The penalty times the batch size, as the detection loss; that of one image, and the mean scale, as items."""
        scales = torch.cat([scale.float() for scale in self.scales]).abs()
        penalty = self.strength * self.factor * scales.sum()
        return penalty * len(images), {"sparsity/l1": penalty.detach(), "scales/mean": scales.mean().detach()}

    def epoch_row(self) -> dict[str, float]:
        """What the log should know of this epoch: the schedule's factor."""
        return {"schedule/sparsity": self.factor}

    def epoch_doubts(self, items: Mapping[str, float]) -> Sequence[str]:
        """What was wrong for a whole epoch: nothing, as the penalty does not depend on the batches."""
        return ()

    def preflight(
        self,
        images: Tensor,
        predictions: Sequence[Tensor],
        features: Sequence[Tensor],
        targets: Tensor,
        detection_loss: Tensor,
        parameters: Iterable[Tensor] = (),
    ) -> Strength:
        """What is penalised, and how strongly beside the detection loss."""
        scales = torch.cat([scale.detach().float() for scale in self.scales]).abs()
        ratio = float(self.strength * self.factor * scales.sum() * len(images) / detection_loss.detach())
        return Strength(
            f"sparsity: {len(scales)} BatchNorm scales, mean {float(scales.mean()):.3f}; strength {self.strength:g} "
            f"({self.schedule}), {ratio:.2f} of the detection loss"
        )


def describe_scales(scales: Tensor) -> str:
    """One line: how many channels have a scale below some values."""
    below = ", ".join(f"{float((scales < edge).float().mean()):.0%} below {edge:g}" for edge in EDGES)
    return f"{len(scales)} scales: median {float(scales.median()):.3f}; {below}"
