"""Test-time augmentation: three sizes, the middle one mirrored."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

VIEWS = ((1.0, False), (0.83, True), (0.67, False))  # size relative to the image, mirrored left to right
PADDING_COLOR = 0.447  # the mean of ImageNet
UNCLIPPED_FAMILIES = ("yolov7", "mobile")


def predict_augmented(
    predict: Callable[[torch.Tensor], Any], images: torch.Tensor, family: str, stride: int
) -> torch.Tensor:
    """Decoded predictions of all views, in the coordinates of `images`.

    The largest view leaves out its coarsest level and the smallest its finest, as the other views cover those sizes;
    YOLOv7 keeps all.

    Args:
        predict: gives `(decoded, raw maps)` of images, as a model does in evaluation mode.
        images: (N, C, H, W).
        family: of the model.
        stride: its largest.
    """
    axis = 2 if family == "yolov8" else 1  # of the predictions
    views = []
    for number, (ratio, mirrored) in enumerate(VIEWS):
        view = images.flip(3) if mirrored else images
        decoded, raw = predict(_resized(view, ratio, stride))
        counts = [level.shape[2:4].numel() * (1 if axis == 2 else level.shape[1]) for level in raw]
        if family not in UNCLIPPED_FAMILIES:
            first = counts[0] if number == len(VIEWS) - 1 else 0
            last = counts[-1] if number == 0 else 0
            decoded = decoded.narrow(axis, first, sum(counts) - first - last)
        views.append(_to_image(decoded, 3 - axis, ratio, images.shape[3] if mirrored else None))
    return torch.cat(views, axis)


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
