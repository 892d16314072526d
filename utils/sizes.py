"""Sizes of images."""

from __future__ import annotations

import math

from utils.logging import LOGGER


def rounded_size(size: int, stride: int, what: str) -> int:
    """`size` rounded up to a multiple of the model's largest stride, with a word when it changes."""
    rounded = math.ceil(size / stride) * stride
    if rounded != size:
        LOGGER.info(f"{what} {size} is not a multiple of the largest stride {stride}; using {rounded}")
    return rounded
