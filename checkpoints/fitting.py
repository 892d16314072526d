"""Building the architecture that a file brings, within what its weights could fill."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from checkpoints.transfer import TransferReport, transfer_weights
from models.channel_plan import PLAN_KEY
from utils.errors import UserError
from utils.text import printable

if TYPE_CHECKING:
    from models.yolo import Model

MAX_PARAMETERS = 500_000_000  # three times those of the largest published detectors
MODEST_PARAMETERS = 160_000_000  # those of the largest
# How much larger than the weights in a file a model may be while it is built: folded weights are up to a third fewer,
# and a pruned model is built at full width first.
FOLDED, PRUNED = 4, 64
SMALL_MODEL = 1_000_000
MODULES_PER_TENSOR = 20  # a layer without weights, such as an activation, is a module too
MIN_MODULES = 2000
BUILD_ERRORS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def filled_model(
    yaml: dict[str, Any], nc: int, state_dict: Mapping[str, torch.Tensor], where: str, full_width: bool
) -> tuple[Model, TransferReport]:
    """A model of an architecture from a file with whatever of the file's weights fit it, and which those are.

    Args:
        yaml: the architecture.
        nc: number of classes.
        state_dict: the weights.
        where: the file, for an error.
        full_width: the weights may be those of a pruned model although the yaml has no channel plan.

    Raises:
        UserError: the architecture cannot be built, or is larger than its weights could be.
    """
    from models.yolo import Model

    with within_weights(state_dict, where, full_width or PLAN_KEY in yaml):
        model = Model(yaml, nc=nc)
    if not any(".bn." in key for key in state_dict):  # saved after BatchNorm was folded away
        model.fuse()
    return model, transfer_weights(model, state_dict)


@contextmanager
def within_weights(state_dict: Mapping[str, torch.Tensor], where: str, pruned: bool) -> Iterator[None]:
    """Ends the building of an architecture from a file before it fills the memory: no layer is written to before.

    Args:
        state_dict: the weights that it is built for.
        where: the file, for an error.
        pruned: the weights may be those of a pruned model, which is built at full width first.

    Raises:
        UserError: the architecture is larger than its weights could be, or it cannot be built.
    """
    held = sum(tensor.numel() for tensor in state_dict.values())
    most = max(PRUNED * held, MODEST_PARAMETERS) if pruned else FOLDED * held + SMALL_MODEL
    parameters_left = most = min(most, MAX_PARAMETERS)
    modules_left = max(MODULES_PER_TENSOR * len(state_dict), MIN_MODULES)

    def count_parameters(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal parameters_left
        parameters_left -= 0 if parameter is None else parameter.numel()
        if parameters_left < 0:
            raise UserError(
                f"{where}: its architecture has more than {most:,} parameters, its weights {held:,}; it is malicious"
            )

    def count_modules(module: nn.Module, name: str, child: nn.Module | None) -> None:
        nonlocal modules_left
        modules_left -= 1
        if modules_left < 0:
            raise UserError(
                f"{where}: its architecture has many more layers than its {len(state_dict)} weights; it is malicious"
            )

    hooks = (
        register_module_parameter_registration_hook(count_parameters),
        register_module_module_registration_hook(count_modules),
    )
    try:
        yield
    except UserError as error:  # the architecture knows its layers, but not whose it is
        if where in str(error):
            raise
        raise UserError(f"{where}: {error}") from error
    except BUILD_ERRORS as error:
        reason = f"{type(error).__name__}: {printable((str(error).splitlines() or [''])[0], 100)}"
        raise UserError(f"{where}: its architecture cannot be built ({reason}); it is damaged") from error
    finally:
        for hook in hooks:
            hook.remove()
