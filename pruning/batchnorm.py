"""Statistics of BatchNorm after a cut: they were those of wider layers."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn

from pruning.errors import PruneError


@torch.no_grad()
def reestimate_batchnorm(model: nn.Module, images: Iterable[Tensor], only: Collection[nn.Module] | None = None) -> None:
    """Replaces the running statistics of BatchNorm by their mean over batches; modes are left as they were.

    Args:
        model: changed in place; its weights stay.
        images: batches as in training, with its augmentation: other images have other statistics.
        only: the layers to estimate; the others keep their statistics and work with them. None: all.

    Raises:
        PruneError: there is no batch, or none that has statistics.
    """
    modes = [(module, module.training) for module in model.modules()]
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if only is not None:
        fixed, norms = [module for module in norms if module not in set(only)], [m for m in norms if m in set(only)]
    else:
        fixed = []
    momenta = [module.momentum for module in norms]
    model.train()
    for module in fixed:
        module.eval()
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # a cumulative mean
    skipped: set[nn.Module] = set()

    def leave_out_lone_values(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        module.training = inputs[0].numel() != inputs[0].shape[1]  # one image on a map of 1 x 1 has no statistics
        if not module.training:
            skipped.add(module)

    hooks = [module.register_forward_pre_hook(leave_out_lone_values) for module in norms]
    count = 0
    for batch in images:
        model(batch)
        count += 1
    for hook in hooks:
        hook.remove()
    for module, momentum in zip(norms, momenta):
        module.momentum = momentum
    for part, mode in modes:
        part.training = mode
    if not count or any(not module.num_batches_tracked for module in skipped):
        raise PruneError(
            "no images to estimate BatchNorm's statistics on; give a data set with training images, or larger ones in "
            "batches of two"
        )
