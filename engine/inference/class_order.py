"""The classes of a network put into another order: that of the data set which it meets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from models.heads.anchor import AnchorHead, IDetect
from models.heads.anchor_free import AnchorFreeDetect
from models.yolo import Model
from utils.errors import UserError
from utils.logging import LOGGER
from utils.names import class_order, match_names


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
    for rows in _class_rows(model):
        rows.copy_(rows[:, list(order)].clone())


def _class_rows(model: Model) -> Iterator[Tensor]:
    """Views (anchors, nc, ...) of the parameters that make the class outputs."""
    head = model.head
    if isinstance(head, AnchorFreeDetect):
        convs: list[nn.Module] = [branch[-1] for branch in head.cv3]  # type: ignore[index, misc]
        yield from (parameter[None] for conv in convs for parameter in conv.parameters())
    elif isinstance(head, AnchorHead):
        position = len(model.model) - 1
        indices: list[int] = head.f  # type: ignore[assignment]
        sources = [model.model[index if index >= 0 else position + index] for index in indices]
        tensors = [p for conv in head.prediction_convolutions(sources) for p in conv.parameters()]
        if isinstance(head, IDetect):
            tensors += [layer.implicit[0] for layer in head.im]  # type: ignore[index, misc]
        for tensor in tensors:
            yield tensor.view(head.na, head.no, *tensor.shape[1:])[:, head.box_outputs + 1 :]
