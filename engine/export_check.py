"""Compares an exported file with the PyTorch module it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.backends import open_runtime
from utils.errors import UserError

TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2}
LEAST_FOUND = 0.98  # of suppressed boxes: where two are equally good, rounding decides which one stays
BLOCK = 16  # pixels


def sample_images(shape: Sequence[int], seed: int = 0) -> Tensor:
    """Images (N, 3, H, W) in [0, 1] that resemble photographs: soft grounds, sharp-edged objects, a little noise."""
    generator = torch.Generator().manual_seed(seed)
    count, channels, height, width = shape
    coarse = torch.rand(count, channels, height // BLOCK + 1, width // BLOCK + 1, generator=generator)
    images = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
    for image in images:
        for _ in range(8):
            top, left, tall, wide = (
                torch.rand(4, generator=generator) * torch.tensor([height, width] * 2) * 0.7
            ).long()
            image[:, top : top + tall + 4, left : left + wide + 4] = torch.rand(channels, 1, 1, generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    return (images + 0.02 * noise).clamp(0, 1)


@torch.no_grad()
def verify(path: Path, module: nn.Module, shapes: Sequence[Sequence[int]], images_like: Tensor) -> float:
    """Runs a file and the module it was made from on the same images.

    Args:
        path: the exported file.
        module: what it must equal.
        shapes: of the images to try, (N, 3, H, W).
        images_like: a tensor of the module's dtype on its device.

    Returns:
        The largest difference relative to the value, or to 1 for smaller ones.

    Raises:
        UserError: they differ by more than rounding.
    """
    runtime = open_runtime(path, images_like.device)
    limit = TOLERANCES[images_like.dtype]
    worst = 0.0
    for seed, shape in enumerate(shapes):
        images = sample_images(shape, seed).to(images_like)
        expected, found = module(images).float(), runtime(images).float()
        rows = expected.ndim == 2
        difference = row_difference(expected, found, limit) if rows else relative_difference(expected, found)
        if not difference <= limit:
            raise UserError(
                f"{path} differs from PyTorch by {difference:.2g} at shape {tuple(shape)}, more than the {limit:g} "
                "of rounding; try another --opset, or --no-simplify"
            )
        worst = max(worst, difference)
    return worst


def relative_difference(expected: Tensor, found: Tensor) -> float:
    """The largest difference relative to the value, or to 1 for smaller values; infinite for other shapes."""
    if expected.shape != found.shape:
        return float("inf")
    return float(((expected - found).abs() / expected.abs().clamp(min=1)).max()) if expected.numel() else 0.0


def row_difference(expected: Tensor, found: Tensor, limit: float) -> float:
    """The same for suppressed rows (n, 7) in any order: over those with a partner within `limit`.

    Infinite when too many on either side have none.
    """
    if not len(expected) and not len(found):
        return 0.0
    if not len(expected) or not len(found):
        return float("inf")
    pairs = ((expected[:, None] - found).abs() / expected.abs().clamp(min=1)[:, None]).amax(2)  # (n, m)
    for nearest in (pairs.amin(0), pairs.amin(1)):
        if (nearest <= limit).float().mean() < LEAST_FOUND:
            return float("inf")
    nearest = pairs.amin(1)
    return float(nearest[nearest <= limit].max())
