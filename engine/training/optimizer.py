"""The optimizer with its three parameter groups: biases, weights with decay, and weights without."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from engine.training.schedule import StepPlan
from utils.errors import unknown_name

GROUPS = ("bias", "decay", "no_decay")
NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


def parameter_groups(modules: Iterable[nn.Module]) -> dict[str, list[nn.Parameter]]:
    """Trainable parameters by the treatment they get.

    Biases have their own learning rate in the warm-up; scales of normalisation layers and implicit
    tensors get no weight decay; everything else does. Frozen parameters are left out.
    """
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in GROUPS}
    for root in modules:
        for module in root.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if not parameter.requires_grad:
                    continue
                if name == "bias":
                    groups["bias"].append(parameter)
                elif name == "implicit" or isinstance(module, NORMS):
                    groups["no_decay"].append(parameter)
                else:
                    groups["decay"].append(parameter)
    return groups


def build_optimizer(
    name: str, modules: Iterable[nn.Module], lr: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum (plain without any), Adam or AdamW over the three groups of `modules`.

    Args:
        name: "SGD", "Adam" or "AdamW".
        modules: the student, then each extra loss (whose parameters are its adapters).
        lr: learning rate.
        momentum: momentum of SGD, first beta of Adam and AdamW.
        weight_decay: decay of the second group.
    """
    groups = parameter_groups(modules)
    parameters = [
        {"params": groups[kind], "kind": kind, "weight_decay": weight_decay if kind == "decay" else 0.0}
        for kind in GROUPS
    ]
    if name == "SGD":
        return torch.optim.SGD(parameters, lr=lr, momentum=momentum, nesterov=momentum > 0)
    if name == "Adam":
        return torch.optim.Adam(parameters, lr=lr, betas=(momentum, 0.999))
    if name == "AdamW":
        return torch.optim.AdamW(parameters, lr=lr, betas=(momentum, 0.999))
    raise unknown_name("optimizer", name, ("SGD", "Adam", "AdamW"), "--optimizer")


def apply_plan(optimizer: torch.optim.Optimizer, plan: StepPlan) -> None:
    """Sets the learning rates and the momentum of an iteration."""
    for group in optimizer.param_groups:
        group["lr"] = plan.bias_lr if group["kind"] == "bias" else plan.lr
        if "momentum" in group:
            group["momentum"] = plan.momentum
        else:
            group["betas"] = (plan.momentum, group["betas"][1])
