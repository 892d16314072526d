"""Loading what to detect with: one model, or several that vote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from engine.backends import ExportedModel
from engine.checkpoint import load_model
from engine.exported import exported_kind
from utils.errors import UsageError, UserError


class Ensemble(nn.Module):
    """Several detectors as one: all their predictions go into one suppression.

    Attributes:
        input_hw: the only height and width that they take; None where any multiple of the stride will do.

    Args:
        models: detectors of the same classes and the same layout of predictions.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        first: Any = models[0]
        self.names: list[str] = first.names
        self.nc: int = first.nc
        self.nms_layout: str = first.nms_layout
        self.stride: Tensor = torch.stack([torch.as_tensor(model.stride).max() for model in models]).max()[None]
        self.input_hw: tuple[int, int] | None = next(filter(None, map(fixed_input, models)), None)

    def forward(self, images: Tensor, augment: bool = False) -> tuple[Tensor, None]:
        """The decoded predictions of all models, one after the other; there are no common raw maps."""
        decoded = [model(images, augment=augment)[0] for model in self.models]
        return torch.cat(decoded, dim=2 if self.nms_layout == "yolov8" else 1), None


def fixed_input(model: nn.Module) -> tuple[int, int] | None:
    """The only height and width that a detector takes, in pixels; None where any multiple of its stride will do."""
    return getattr(model, "input_hw", None)


def load_detector(
    weights: Sequence[str], device: torch.device, augment: bool = False, names: Sequence[str] | None = None
) -> Any:
    """The fused model of a checkpoint, an exported file in the place of one, or an ensemble of several.

    Args:
        weights: checkpoints and exported files.
        device: where to compute.
        augment: it must be able to do test-time augmentation.
        names: class names for an exported file that brings none.

    Raises:
        UserError: a file is not understood, or the models differ in classes, kind or size of the input.
    """
    exported = [path for path in weights if exported_kind(path)]
    if augment and exported:
        raise UsageError(f"--augment needs a checkpoint; {exported[0]} is an exported model, which has no such views")
    models = [
        ExportedModel(path, device, names).eval() if exported_kind(path) else load_model(path, device, fuse=True)
        for path in weights
    ]
    sizes = {fixed_input(model): path for path, model in zip(weights, models) if fixed_input(model)}
    if len(sizes) > 1:
        (size, path), (other_size, other) = list(sizes.items())[:2]
        raise UserError(f"--weights {path} takes images of {size} pixels and {other} of {other_size}; they cannot vote")
    for path, model in zip(weights, models):
        for what, own, first in (
            ("number of classes", model.nc, models[0].nc),
            ("predictions in the layout of", model.nms_layout, models[0].nms_layout),
        ):
            if own != first:
                raise UserError(f"--weights {path} has {what} {own}, but {weights[0]} has {first}; they cannot vote")
    return models[0] if len(models) == 1 else Ensemble(models).eval()
