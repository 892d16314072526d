"""Removing channels from a network, in place, by torch-pruning's own functions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch_pruning as tp
from torch import Tensor, nn

from pruning.graph import CONVOLUTIONS


@torch.no_grad()
def remove_channels(model: nn.Module, removed: Mapping[tuple[str, str], Tensor]) -> None:
    """Takes channels out of modules and parameters.

    Args:
        model: changed in place; gradients of the parameters go with their channels.
        removed: (name of the module or parameter, side) -> indices of the channels, as `pruning.graph.Port` has them.
    """
    parameters = dict(model.named_parameters())
    for (name, side), indices in removed.items():
        gone = sorted(set(indices.tolist()))
        if name in parameters:
            owner, _, leaf = name.rpartition(".")
            kept = [i for i in range(parameters[name].shape[1]) if i not in set(gone)]
            old = parameters[name]
            setattr(model.get_submodule(owner), leaf, nn.Parameter(old[:, kept].clone(), old.requires_grad))
            continue
        module = model.get_submodule(name)
        flags = {leaf: parameter.requires_grad for leaf, parameter in module.named_parameters(recurse=False)}
        if isinstance(module, nn.BatchNorm2d):
            tp.prune_batchnorm_out_channels(module, gone)
        elif isinstance(module, CONVOLUTIONS) and module.groups == module.in_channels == module.out_channels > 1:
            if side == "out":  # its inputs are the same channels
                tp.prune_depthwise_conv_out_channels(module, gone)
        else:
            (tp.prune_conv_out_channels if side == "out" else tp.prune_conv_in_channels)(module, gone)
        for leaf, flag in flags.items():
            module.get_parameter(leaf).requires_grad_(flag)
