"""What every detection head has in common."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

Maps = list[torch.Tensor]


def cell_grid(height: int, width: int, like: torch.Tensor) -> torch.Tensor:
    """Column and row number of every cell, (height, width, 2), in the dtype and on the device of `like`."""
    rows = torch.arange(height, device=like.device, dtype=like.dtype)
    columns = torch.arange(width, device=like.device, dtype=like.dtype)
    row_of, column_of = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack((column_of, row_of), -1)


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """Half precision as float32: pixel coordinates of a large image have no room in sixteen bits."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class DetectionHead(nn.Module):
    """Base of the heads: raw maps in training, `(decoded, raw)` in evaluation.

    Attributes:
        nc: number of classes.
        num_levels: number of maps it detects on.
        strides: pixels of the image per cell, for each level.

    Args:
        num_classes: number of classes.
        strides: of each level, small first.
    """

    def __init__(self, num_classes: int, strides: Sequence[float]) -> None:
        super().__init__()
        self.nc = num_classes
        self.num_levels = len(strides)
        self.strides = tuple(float(stride) for stride in strides)

    def initialize_biases(self, sources: Sequence[nn.Module], image_size: int = 640) -> None:
        """Starts the predictions at the frequencies of objects in an image of `image_size` pixels a side.

        Args:
            sources: the layers that feed the head.
            image_size: pixels a side.
        """
        raise NotImplementedError

    def forward(self, features: Sequence[torch.Tensor]) -> Maps | tuple[torch.Tensor, Maps]:
        """Predicts on one map per level, small stride first.

        Returns:
            the raw maps in training; the decoded predictions of all levels and the raw maps in evaluation.
        """
        raw = self.raw_maps(features)
        if self.training:
            return raw + self.auxiliary_maps(features)
        return self.decode(raw), raw

    def raw_maps(self, features: Sequence[torch.Tensor]) -> Maps:
        """The logits of each level."""
        raise NotImplementedError

    def auxiliary_maps(self, features: Sequence[torch.Tensor]) -> Maps:
        """Further logits that only training wants."""
        return []

    def decode(self, raw: Maps) -> torch.Tensor:
        """Boxes in pixels and scores in [0, 1] from the raw maps."""
        raise NotImplementedError
