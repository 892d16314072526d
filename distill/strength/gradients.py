"""Norms of gradients at a student's feature maps, over all processes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import DistillError

SCALES = (2.0**10, 1.0, 2.0**20)
"""On losses whose gradients pass half precision, tried in turn: small ones vanish there, large ones overflow."""


def squared_norms(losses: Sequence[tuple[Tensor, Sequence[Tensor]]]) -> list[float]:
    """For each loss the squared norm of its gradient at its maps, summed over the maps and the processes, in float32.

    No `.grad` is filled, and all graphs are kept. Every process has to call this alike.

    Args:
        losses: scalars with their graphs, each with the maps that it is looked at at.

    Raises:
        DistillError: none of a loss's maps takes gradients.
    """
    points = [[x for x in maps if x.requires_grad] for _, maps in losses]
    if not all(points):
        raise DistillError(
            "a share is measured at layers of the student that are frozen; freeze fewer layers, or give a weight"
        )
    half = any(x.dtype == torch.float16 for maps in points for x in maps)
    found = [math.nan] * len(losses)
    for scale in SCALES if half else (1.0,):
        tried = _summed([_squared_norm(loss, maps, scale) for (loss, _), maps in zip(losses, points)])
        found = [old if 0 < old < math.inf else new for old, new in zip(found, tried)]
        if all(0 < value < math.inf for value in found):  # the same in every process
            break
    return found


def _squared_norm(loss: Tensor, maps: Sequence[Tensor], scale: float) -> Tensor:
    if not loss.requires_grad:
        return torch.zeros((), device=maps[0].device)
    with torch.autocast(loss.device.type, enabled=False):
        gradients = torch.autograd.grad(loss * scale, maps, retain_graph=True, allow_unused=True)
    squares = [(gradient.float() / scale).square().sum() for gradient in gradients if gradient is not None]
    return torch.stack(squares).sum() if squares else torch.zeros((), device=maps[0].device)


def labelled_anywhere(labels: Tensor) -> bool:
    """Whether any process has a labelled box; the same answer in all of them."""
    return _summed([labels.float()])[0] > 0


def _summed(values: Sequence[Tensor]) -> list[float]:
    stacked = torch.stack(list(values))
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(stacked)
    return stacked.tolist()


def through(outputs: Sequence[Tensor], loss: Tensor, anew: Sequence[Tensor]) -> Tensor:
    """A scalar of `anew`, the same outputs computed once more, that has the loss's gradient at them.

    So the gradient of a loss can go back through another graph than the loss's own, such as one that was not compiled.

    Args:
        outputs: what the loss was computed from.
        loss: with its graph down to the outputs, which is kept.
        anew: the outputs again.
    """
    scale = SCALES[0] if any(x.dtype == torch.float16 for x in outputs) else 1.0
    gradients = torch.autograd.grad(loss * scale, list(outputs), retain_graph=True, allow_unused=True)
    products = [(x.float() * (g.float() / scale)).sum() for x, g in zip(anew, gradients) if g is not None]
    return torch.stack(products).sum()
