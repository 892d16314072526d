"""BatchNorm in a training: in frozen layers it stays as it is, and a lone value has no statistics of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from data.loader import DetectionLoader
from data.unlabeled import MixedLoader

_BatchNorm = nn.modules.batchnorm._BatchNorm


def frozen_norms(model: nn.Module) -> list[nn.Module]:
    """The BatchNorms that are not trained; in evaluation mode their running statistics do not change either."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return [norm for norm in norms if norm.affine and not any(p.requires_grad for p in norm.parameters())]


def smallest_batch(loader: DetectionLoader | MixedLoader, world_size: int) -> int:
    """Images in the smallest batch that a process gets in an epoch, which is the last one."""
    if isinstance(loader, MixedLoader):
        return smallest_batch(loader.labelled, world_size) + 1
    count = len(loader.dataset) if loader.dataset.rect else -(-len(loader.dataset) // world_size)
    return count % loader.batch_size or loader.batch_size


def has_lone_values(model: nn.Module, img_size: int) -> bool:
    """Whether a single image of this size gives some BatchNorm one value a channel, as on a map of 1 x 1.

    Args:
        model: in evaluation mode; nothing of it changes.
        img_size: height and width in pixels.
    """
    found = False

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal found
        found |= is_lone(inputs[0])

    hooks = [m.register_forward_pre_hook(look) for m in model.modules() if isinstance(m, _BatchNorm)]
    try:
        with torch.no_grad():
            model(torch.zeros(1, 3, img_size, img_size, device=next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def is_lone(x: Tensor) -> bool:
    """Whether (N, C, ...) holds one value a channel."""
    return x.dim() > 1 and x.numel() == x.shape[1]


def guard_lone_values(modules: Iterable[nn.Module]) -> None:
    """Lets every BatchNorm use its running statistics for a lone value, which PyTorch refuses to take statistics of.

    A SyncBatchNorm is left as it is: it has the values of all processes.
    """
    for module in modules:
        for norm in module.modules():
            if isinstance(norm, _BatchNorm) and not isinstance(norm, nn.SyncBatchNorm):
                guard = _LoneValueGuard()
                norm.register_forward_pre_hook(guard.before)
                norm.register_forward_hook(guard.after, always_call=True)


class _LoneValueGuard:
    """The two hooks of one BatchNorm."""

    def __init__(self) -> None:
        self.switched = False

    def before(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.switched = norm.training and is_lone(inputs[0])
        if self.switched:
            norm.training = False

    def after(self, norm: nn.Module, *_: Any) -> None:
        if self.switched:
            norm.training = True
            self.switched = False
