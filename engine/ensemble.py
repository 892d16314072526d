"""Loading what to detect with: one model, or several that vote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from engine.checkpoint import load_model
from utils.errors import UserError


class Ensemble(nn.Module):
    """Several detectors as one: all their predictions go into one suppression.

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

    def forward(self, images: Tensor, augment: bool = False) -> tuple[Tensor, None]:
        """The decoded predictions of all models, one after the other; there are no common raw maps."""
        decoded = [model(images, augment=augment)[0] for model in self.models]
        return torch.cat(decoded, dim=2 if self.nms_layout == "yolov8" else 1), None


def load_detector(weights: Sequence[str], device: torch.device) -> Any:
    """The fused model of a checkpoint, or an ensemble of several.

    Raises:
        UserError: a file is not understood, or the models differ in classes or kind.
    """
    models = [load_model(path, device, fuse=True) for path in weights]
    for path, model in zip(weights, models):
        for what, own, first in (
            ("number of classes", model.nc, models[0].nc),
            ("predictions in the layout of", model.nms_layout, models[0].nms_layout),
        ):
            if own != first:
                raise UserError(f"--weights {path} has {what} {own}, but {weights[0]} has {first}; they cannot vote")
    return models[0] if len(models) == 1 else Ensemble(models).eval()
