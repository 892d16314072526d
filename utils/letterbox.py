"""Fitting an image into the network's input without changing its proportions."""

from __future__ import annotations

import cv2
import numpy as np


def letterbox(
    image_hwc: np.ndarray,
    new_shape: int | tuple[int, int],
    color: int = 114,
    auto: bool = True,
    scale_fill: bool = False,
    scaleup: bool = True,
    stride: int = 32,
) -> tuple[np.ndarray, tuple[float, float], tuple[float, float]]:
    """Resizes an image to fit and pads the rest, half on each side.

    Args:
        image_hwc: uint8 image (H, W) or (H, W, C).
        new_shape: side of a square, or height and width.
        color: grey level of the padding.
        auto: pad up to the next multiple of `stride` only, so the result may be smaller than `new_shape`.
        scale_fill: stretch to `new_shape` instead of padding.
        scaleup: enlarge images that are smaller than `new_shape`; off, they are only padded.
        stride: largest stride of the network, in pixels; used by `auto`.

    Returns:
        The image, the ratios new over old size (width, height), and the padding per side (width, height) in pixels. A
        padding of x.5 pixels puts the odd pixel on the right or at the bottom.
    """
    height, width = image_hwc.shape[:2]
    target_h, target_w = (new_shape, new_shape) if isinstance(new_shape, int) else new_shape
    ratio = min(target_h / height, target_w / width)
    if not scaleup:
        ratio = min(ratio, 1.0)

    if scale_fill:
        resized_w, resized_h = target_w, target_h
        ratios = (target_w / width, target_h / height)
    else:
        # A side of a very thin image must not be rounded away.
        resized_w, resized_h = max(round(width * ratio), 1), max(round(height * ratio), 1)
        ratios = (ratio, ratio)
    total_w, total_h = target_w - resized_w, target_h - resized_h
    if auto:
        total_w, total_h = total_w % stride, total_h % stride
    pad_w, pad_h = total_w / 2, total_h / 2

    if (resized_w, resized_h) != (width, height):
        image_hwc = cv2.resize(image_hwc, (resized_w, resized_h), interpolation=cv2.INTER_LINEAR)
    left, top = total_w // 2, total_h // 2
    image_hwc = cv2.copyMakeBorder(
        image_hwc, top, total_h - top, left, total_w - left, cv2.BORDER_CONSTANT, value=(color, color, color)
    )
    return image_hwc, ratios, (pad_w, pad_h)
