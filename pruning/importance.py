"""How much a channel matters. One number a channel of a segment; channels with the lowest go first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pruning.errors import PruneError
from pruning.graph import CONVOLUTIONS, Group, Segment

LARGEST_SMALL_SCALE = 1e-3

Loss = Callable[[nn.Module, Any], Tensor]


class Importance:
    """Base of the measures.

    Args:
        model: the network that is pruned, as it is; a measure may run it.
    """

    needs_data = False

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, segment: Segment) -> Tensor:
        """(n,) at least 0, float64."""
        raise NotImplementedError


class BatchNormScale(Importance):
    """The absolute scale of the BatchNorm behind a channel, a mean where there are several (Liu et al., Network
    Slimming, 2017).

    Raises:
        PruneError: no scale is above 0.001, so none says more than another.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        scales = [m.weight.detach() for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.affine]
        largest = max(float(scale.abs().max()) for scale in scales)
        if largest < LARGEST_SMALL_SCALE:
            raise PruneError(
                f"every BatchNorm scale is below {LARGEST_SMALL_SCALE} (the largest is {largest:.1e}): "
                "the sparsity training was too strong to tell channels apart; use a weaker one, or another importance"
            )

    def __call__(self, segment: Segment) -> Tensor:
        scales = [_spread(norm.weight.detach().abs(), at) for _, norm, at in _batchnorms(segment)]
        return torch.stack(scales).mean(0)


class FilterNorm(Importance):
    """The norm of a channel's filters, a mean where several convolutions make it (Li et al., Pruning Filters, 2017).

    Filters are taken as they act, times the scale of a BatchNorm that follows them over its deviation: without it the
    norm of a filter before a BatchNorm means nothing.
    """

    order = 2

    def __call__(self, segment: Segment) -> Tensor:
        factor = torch.ones(segment.size, dtype=torch.float64)
        gains = [
            _spread(norm.weight.detach().abs() / (_variance(norm) + norm.eps).sqrt(), at)
            for _, norm, at in _batchnorms(segment)
        ]
        if gains:
            factor = torch.stack(gains).mean(0)
        norms = []
        for port, at in segment.places.items():
            if port.side == "out" and isinstance(port.module, CONVOLUTIONS):
                dimension = 1 if port.module.transposed and port.module.groups == 1 else 0
                filters = port.module.weight.detach().transpose(0, dimension).flatten(1)
                norms.append(_spread(filters.norm(self.order, dim=1), at))
        return torch.stack(norms).mean(0) * factor


class L1Norm(FilterNorm):
    """`FilterNorm` with the sum of absolute weights."""

    order = 1


class Taylor(Importance):
    """The square of what the loss would change if a channel were gone, to first order (Molchanov et al., Importance
    Estimation for Neural Network Pruning, 2019): of the gate behind a BatchNorm, scale * its gradient + shift * its
    gradient. Gates that are removed together are summed before the square.

    Args:
        batches: the data that it is measured on.
        loss: (model, batch) -> scalar.
    """

    needs_data = True

    def __init__(self, model: nn.Module, batches: Iterable[Any], loss: Loss) -> None:
        super().__init__(model)
        norms = {name: m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) and m.affine}
        needed = [(p, p.requires_grad) for p in model.parameters()]
        for parameter, _ in needed:
            parameter.requires_grad_(False)
        for module in norms.values():
            module.requires_grad_(True)
        rows: dict[str, list[Tensor]] = {name: [] for name in norms}
        for batch in batches:
            parameters = [p for m in norms.values() for p in (m.weight, m.bias)]
            gradients = torch.autograd.grad(loss(model, batch), parameters, allow_unused=True)
            for (name, module), scale, shift in zip(norms.items(), gradients[::2], gradients[1::2]):
                zero = torch.zeros(module.num_features, dtype=torch.float64)
                change = (
                    zero if scale is None else (module.weight * scale + module.bias * shift).detach().cpu().double()
                )
                rows[name].append(change)
        for parameter, flag in needed:
            parameter.requires_grad_(flag)
        if not any(rows.values()):
            raise PruneError("Taylor importance needs at least one batch of images")
        self.changes = {name: torch.stack(values) for name, values in rows.items()}  # (batches, C)

    def __call__(self, segment: Segment) -> Tensor:
        total = sum(self.changes[name][:, at].sum(-1) for name, _, at in _batchnorms(segment))  # (batches, n)
        assert isinstance(total, Tensor)
        return total.square().mean(0)


class Random(Importance):
    """No information at all: what every other measure must beat."""

    def __init__(self, model: nn.Module, seed: int = 0) -> None:
        super().__init__(model)
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, segment: Segment) -> Tensor:
        return torch.rand(segment.size, generator=self.generator, dtype=torch.float64)


IMPORTANCES: dict[str, type[Importance]] = {
    "bn": BatchNormScale,
    "l1": L1Norm,
    "l2": FilterNorm,
    "taylor": Taylor,
    "random": Random,
}


def group_scores(groups: Sequence[Group], measure: Importance, normalize: str) -> list[list[Tensor]]:
    """The importance of every channel of every segment of every group, normalised within the group.

    Args:
        groups: what is ranked.
        measure: gives the importance of a segment's channels.
        normalize: "mean" divides by the mean of the group, "max" by its largest, "none" leaves the values.
    """
    scores = []
    for group in groups:
        values = [measure(segment) for segment in group.segments]
        joined = torch.cat(values)
        divisor = {"mean": joined.mean(), "max": joined.max(), "none": torch.tensor(1.0)}[normalize]
        scores.append([value / divisor.clamp(min=1e-300) for value in values])
    return scores


def _batchnorms(segment: Segment) -> list[tuple[str, nn.BatchNorm2d, Tensor]]:
    """Name and module of every BatchNorm behind a segment's channels, and where they are in it."""
    places = segment.places.items()
    return [(port.name, port.module, at) for port, at in places if isinstance(port.module, nn.BatchNorm2d)]


def _variance(norm: nn.BatchNorm2d) -> Tensor:
    return torch.ones_like(norm.weight) if norm.running_var is None else norm.running_var


def _spread(values: Tensor, at: Tensor) -> Tensor:
    """Values of a port's channels for the channels of a segment: the mean over the places of each, (n,)."""
    return values.cpu().double()[at].mean(1)
