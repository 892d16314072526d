"""Loading what to detect with: one model, or several that vote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from checkpoints.checkpoint import load_model
from checkpoints.exported import exported_kind, refuse_programs
from engine.inference.runtimes import ExportedModel
from utils.detector import Detector, Layout
from utils.errors import UsageError, UserError
from utils.evaluation.metrics import Convention
from utils.logging import LOGGER
from utils.names import class_order, plain_name, quoted, unnamed


class Ensemble(nn.Module):
    """Several detectors as one: all their predictions go into one suppression.

    Attributes:
        input_hw: the only height and width that they take; None where any multiple of the stride will do.

    Args:
        models: detectors of the same classes and the same layout of predictions.
    """

    def __init__(self, models: Sequence[Any]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        first = models[0]
        self.names: list[str] = first.names
        self.nc: int = first.nc
        self.layout: Layout = first.layout
        self.convention: Convention = first.convention
        self.stride: Tensor = torch.stack([torch.as_tensor(model.stride).max() for model in models]).max()[None]
        self.input_hw: tuple[int, int] | None = next((model.input_hw for model in models if model.input_hw), None)

    def forward(self, images: Tensor, augment: bool = False) -> tuple[Tensor, None]:
        """The decoded predictions of all models, one after the other; there are no common raw maps."""
        decoded = [model(images, augment=augment)[0] for model in self.models]
        return torch.cat(decoded, self.layout.box_axis), None


class Reordered(nn.Module):
    """A detector whose classes stand in another order: in that of a data set, or of another detector.

    Attributes: as a Model's, with the new names.

    Args:
        model: the detector.
        names: the class names of the new order.
        order: for each of them its index among the model's own classes.
    """

    def __init__(self, model: Any, names: Sequence[str], order: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.names = list(names)
        self.order = tuple(order)
        self.nc: int = model.nc
        self.stride: Tensor = model.stride
        self.layout: Layout = model.layout
        self.convention: Convention = model.convention
        self.input_hw: tuple[int, int] | None = model.input_hw

    def forward(self, images: Tensor, augment: bool = False) -> tuple[Tensor, None]:
        """The decoded predictions, and None for the raw maps, which are in the model's own order."""
        decoded = self.model(images, augment=augment)[0]
        return self.layout.reordered(decoded, self.order), None


def with_names(model: Detector, names: Sequence[str], who: str, others: str) -> Detector:
    """A detector with the classes of a list of names: equal names in another order are put into it.

    Classes that are only called otherwise keep their index, with a word.

    Args:
        model: a detector of as many classes.
        names: what its classes shall be.
        who: where `names` come from.
        others: what the detector is called.

    Raises:
        UserError: some names stand at another index and others are not in both lists.
    """
    order = class_order(names, model.names, who, others)
    if order is not None:
        LOGGER.info(f"the classes of {others} stand in another order than in {who}: matched by name")
        return Reordered(model, names, order).eval()
    renamed = [(own, new) for own, new in zip(model.names, names) if plain_name(own) != plain_name(new)]
    if renamed and not unnamed(model.names):
        own, new = renamed[0]
        LOGGER.warning(
            f"warning: class names differ, {quoted([own])} in {others} is {quoted([new])} in {who} "
            f"({len(renamed)} of {len(names)} classes): taken for the same by index"
        )
    return model


def load_detector(
    weights: Sequence[str],
    device: torch.device,
    augment: bool = False,
    names: Sequence[str] | None = None,
    trust: bool = False,
) -> Detector:
    """The fused model of a checkpoint, an exported file in the place of one, or an ensemble of several.

    Args:
        weights: checkpoints and exported files.
        device: where to compute.
        augment: it must be able to do test-time augmentation.
        names: class names for an exported file that brings none.
        trust: run exported files that are programs.

    Raises:
        UserError: a file is not understood, is a program that is not trusted, or the models differ in classes, kind or
            size of the input.
    """
    exported = [path for path in weights if exported_kind(path)]
    if augment and exported:
        raise UsageError(f"--augment needs a checkpoint; {exported[0]} is an exported model, which has no such views")
    if not trust:
        refuse_programs(weights)
    models: list[Detector] = [
        ExportedModel(path, device, names, trust).eval() if exported_kind(path) else load_model(path, device, fuse=True)
        for path in weights
    ]
    sizes = {model.input_hw: path for path, model in zip(weights, models) if model.input_hw}
    if len(sizes) > 1:
        (size, path), (other_size, other) = list(sizes.items())[:2]
        raise UserError(f"--weights {path} takes images of {size} pixels and {other} of {other_size}; they cannot vote")
    for path, model in zip(weights, models):
        for what, own, first in (
            ("number of classes", model.nc, models[0].nc),
            ("predictions in the layout", model.layout, models[0].layout),
        ):
            if own != first:
                raise UserError(f"--weights {path} has {what} {own}, but {weights[0]} has {first}; they cannot vote")
    if len(models) == 1:
        return models[0]
    # Names decide which class is which, so the first that has some tells all others.
    pairs = list(zip(weights, models))
    path, named = next((pair for pair in pairs if not unnamed(pair[1].names)), pairs[0])
    names = list(named.names)
    ensemble = Ensemble([with_names(model, names, f"--weights {path}", other) for other, model in pairs])
    ensemble.names = names
    return ensemble.eval()
