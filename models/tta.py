"""Test-time augmentation: three sizes, the middle one mirrored."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from utils.detector import Layout
from utils.errors import UsageError

VIEWS = ((1.0, False), (0.83, True), (0.67, False))  # size relative to the image, mirrored left to right
PADDING_COLOR = 0.447  # the mean of ImageNet


def predict_augmented(
    predict: Callable[[torch.Tensor], Any],
    images: torch.Tensor,
    stride: int,
    layout: Layout,
    per_cell: int,
    views_overlap: bool,
) -> torch.Tensor:
    """Decoded predictions of all views, in the coordinates of `images`.

    The largest view leaves out its coarsest level and the smallest its finest, as the other views cover those sizes,
    unless they are to overlap.

    Args:
        predict: gives `(decoded, raw maps)` of images, as a model does in evaluation mode.
        images: (N, C, H, W).
        stride: the model's largest.
        layout: of its predictions.
        per_cell: boxes that it predicts a cell.
        views_overlap: keep all levels of all views.

    Raises:
        UsageError: the predictions are end-to-end, so those of several views cannot be put together.
    """
    if layout.end_to_end:
        raise UsageError("--augment: this model gives final boxes, which cannot be merged over views; leave it out")
    views = []
    for number, (ratio, mirrored) in enumerate(VIEWS):
        view = images.flip(3) if mirrored else images
        decoded, raw = predict(_resized(view, ratio, stride))
        counts = [level.shape[2:4].numel() * per_cell for level in raw]
        if not views_overlap:
            first = counts[0] if number == len(VIEWS) - 1 else 0
            last = counts[-1] if number == 0 else 0
            decoded = decoded.narrow(layout.box_axis, first, sum(counts) - first - last)
        views.append(_to_image(decoded, layout.class_axis, ratio, images.shape[3] if mirrored else None))
    return torch.cat(views, layout.box_axis)


def _resized(images: torch.Tensor, ratio: float, multiple: int) -> torch.Tensor:
    """Images at a size relative to theirs, padded at the right and bottom to what the unscaled multiple asks for."""
    if ratio == 1.0:
        return images
    height, width = images.shape[2:]
    size = (int(height * ratio), int(width * ratio))
    resized = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
    padded = [math.ceil(side * ratio / multiple) * multiple for side in (height, width)]
    return F.pad(resized, (0, padded[1] - size[1], 0, padded[0] - size[0]), value=PADDING_COLOR)


def _to_image(decoded: torch.Tensor, axis: int, ratio: float, mirror_width: int | None) -> torch.Tensor:
    """Boxes of a view, whose coordinates lie on `axis`, in the coordinates of the image."""
    boxes, scores = decoded.split((4, decoded.shape[axis] - 4), axis)
    boxes = boxes / ratio
    if mirror_width is not None:
        x, rest = boxes.split((1, 3), axis)
        boxes = torch.cat((mirror_width - x, rest), axis)
    return torch.cat((boxes, scores), axis)
