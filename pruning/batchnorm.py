"""Statistics of BatchNorm after a cut: they were those of wider layers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pruning.errors import PruneError


@torch.no_grad()
def reestimate_batchnorm(model: nn.Module, images: Iterable[Tensor]) -> None:
    """Replaces the running statistics of all BatchNorm by their mean over batches; modes are left as they were.

    Args:
        model: changed in place; its weights stay.
        images: batches as in training, with its augmentation: other images have other statistics.

    Raises:
        PruneError: there is no batch, or none that has statistics.
    """
    modes = [(module, module.training) for module in model.modules()]
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [module.momentum for module in norms]
    model.train()
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # a cumulative mean
    count = 0
    for batch in images:
        try:
            model(batch)
        except ValueError:
            if len(batch) > 1:
                raise
            continue  # a lone image on a map of 1 x 1 has no statistics
        count += 1
    for module, momentum in zip(norms, momenta):
        module.momentum = momentum
    for part, mode in modes:
        part.training = mode
    if not count:
        raise PruneError("no images to estimate BatchNorm's statistics on; give a data set with training images, "
            "or larger ones in batches of two")
