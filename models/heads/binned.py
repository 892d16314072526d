"""YOLOv7's head that finds widths and heights by bins."""

from __future__ import annotations

import torch
from torch import nn

from models.heads.anchor import IDetect
from models.heads.base import DetectionHead, HeadPlan

BINS = 21
LARGEST = 4.0  # of the relative sizes, which start at 0


class SizeBins(nn.Module):
    """A size as the middle of the likeliest of equal bins and a correction of at most one bin's width.

    Its `BCEbins` holds a tensor of upstream's checkpoints that belongs to their loss.
    """

    bins: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.step = LARGEST / BINS
        self.register_buffer("bins", (torch.arange(BINS) + 0.5) * self.step)
        self.BCEbins = nn.BCEWithLogitsLoss(pos_weight=torch.ones(1))

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        """(..., 1 + BINS) sigmoids, the correction first, to (...) sizes in [0, LARGEST]."""
        correction = (scores[..., 0] * 2 - 1) * self.step
        return (self.bins[scores[..., 1:].argmax(-1)] + correction).clamp(0, LARGEST)


class IBin(IDetect):
    """IDetect with two sets of 1 + 21 outputs for width and height: it detects; no loss for it is known here.

    Raw maps are (N, na, ny, nx, 2 + 2 * 22 + 1 + nc): x, y, width, height, objectness, classes.
    """

    box_outputs = 2 + 2 * (1 + BINS)

    kind = "binned"

    def __init__(self, plan: HeadPlan) -> None:
        super().__init__(plan)
        self.loss = ""
        self.w_bin_sigmoid = SizeBins()
        self.h_bin_sigmoid = SizeBins()
        for name in ("m", "ia", "im"):  # behind the bins, as in upstream's state_dict
            self.add_module(name, self._modules.pop(name))

    def deployed(self) -> DetectionHead:
        return self  # it has no plain counterpart

    def relative_sizes(self, scores: torch.Tensor) -> torch.Tensor:
        widths, heights = scores.chunk(2, -1)
        return torch.stack((self.w_bin_sigmoid(widths), self.h_bin_sigmoid(heights)), -1)
