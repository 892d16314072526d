"""The classes of a network put into another order: that of the data set which it meets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from models.heads.base import ClassOutputs
from models.yolo import Model
from utils.errors import UserError
from utils.logging import LOGGER
from utils.names import class_order, match_names, unnamed


def adopt_names(model: Model, names: Sequence[str], who: str, others: str) -> Model:
    """Gives a network the class names of a data set, and puts its classes into their order.

    Args:
        model: a network of as many classes; changed.
        names: the data set's names.
        who: where they come from.
        others: what the network is called.

    Raises:
        UserError: it has another number of classes, or some names stand at another index and others are not in both.
    """
    if len(names) != model.nc:
        raise UserError(f"{others} has {model.nc} classes, but {who} has {len(names)}; use the data set of this model")
    order = class_order(names, model.names, who, others)
    if order is not None:
        LOGGER.info(f"the classes of {others} stand in another order than in {who}: matched by name")
        reorder_classes(model, order)
    model.names = list(names)
    return model


def start_from_names(model: Model, names: Sequence[str], others: str) -> None:
    """Puts the classes of a network that starts from weights to where its names ask for them.

    Classes that the weights do not have start as those that are left over, as they did when they were trained.

    Args:
        model: with its own names, and weights of equally many classes; changed.
        names: of the weights.
        others: what the weights are called.
    """
    try:
        found = match_names(model.names, names, "the data set's classes", f"those of {others}")
    except UserError as error:
        LOGGER.warning(f"warning: {error}; their outputs start in the order of the weights")
        return
    left = [index for index in range(len(names)) if index not in found]
    moved = [index for index, place in enumerate(found) if place not in (None, index)]
    if moved:
        LOGGER.info(f"the classes of {others} stand in another order than the data set's: matched by name")
        reorder_classes(model, [left.pop(0) if place is None else place for place in found])


@torch.no_grad()
def reorder_classes(model: Model, order: Sequence[int]) -> None:
    """Puts the class outputs of a network's head into another order.

    Args:
        model: the network; changed.
        order: for each class its index until now.
    """
    for one in _class_outputs(model):
        rows = _by_output(one.parameter, one)[:, one.before :]
        rows.copy_(rows[:, list(order)].clone())


@torch.no_grad()
def take_classes(model: Model, weights: Mapping[str, Tensor], names: Sequence[str]) -> tuple[list[str], int]:
    """Fills the head of a network from weights of another number of classes: boxes, objectness, classes by name.

    Classes that the weights do not have stay as built, as in a student that inherits.

    Args:
        model: with its own names; changed.
        weights: by name.
        names: their classes.

    Returns:
        Names of the tensors that are filled, and how many classes are.

    Raises:
        UserError: a name may mean several classes.
    """
    by_number = unnamed(model.names) and unnamed(names)  # such names tell nothing where the numbers differ
    found = match_names(model.names, names, "the data set's classes", "those of the weights")
    pairs = [] if by_number else [(ours, theirs) for ours, theirs in enumerate(found) if theirs is not None]
    keys = {id(parameter): key for key, parameter in model.named_parameters()}
    taken = []
    for one in _class_outputs(model):
        key, before = keys[id(one.parameter)], one.before
        shape = list(one.parameter.shape)
        shape[one.dimension] = one.groups * (before + len(names))
        if key not in weights or list(weights[key].shape) != shape or not (before or pairs):
            continue
        ours, theirs = (_by_output(tensor, one) for tensor in (one.parameter, weights[key]))
        ours[:, :before] = theirs[:, :before].to(ours)
        for mine, other in pairs:
            ours[:, before + mine] = theirs[:, before + other].to(ours)
        taken.append(key)
    return taken, len(pairs) if taken else 0


def _by_output(tensor: Tensor, of: ClassOutputs) -> Tensor:
    """A view (groups, outputs, ...) of a parameter, by the dimension of its outputs."""
    rows = tensor[0] if of.dimension else tensor
    return rows.view(of.groups, len(rows) // of.groups, *rows.shape[1:])


def _class_outputs(model: Model) -> Iterator[ClassOutputs]:
    """The parameters that make the class outputs."""
    position = len(model.model) - 1
    indices: list[int] = model.head.f  # type: ignore[assignment]
    return model.head.class_outputs([model.model[index if index >= 0 else position + index] for index in indices])
