"""Compares an exported file with the PyTorch module it was made from."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.exporting.modules import Decoded, Suppressed
from engine.inference.runtimes import open_runtime
from utils.boxes import pairwise_iou
from utils.errors import UserError

TOLERANCE = 1e-4  # relative to the value, or to 1 for smaller values
ROUNDINGS = 4  # or so many times what PyTorch itself loses by rounding, in a network that amplifies it or in float16
IOU_SLACK = 0.01  # moving classes apart costs small boxes some digits
LEAST_SIDE = 1  # pixels; the overlap of still thinner boxes is rounding alone
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
def verify(path: Path, module: Decoded | Suppressed, shapes: Sequence[Sequence[int]], images_like: Tensor) -> float:
    """Runs a file and the module it was made from on the same images.

    Args:
        path: the exported file.
        module: what it must equal.
        shapes: of the images to try, (N, 3, H, W).
        images_like: a tensor of the module's dtype on its device.

    Returns:
        The largest difference relative to the value, or to 1 for smaller values.

    Raises:
        UserError: they differ by more than rounding.
    """
    runtime = open_runtime(path, images_like.device, trust=True)  # it has just been written
    exact = copy.deepcopy(module).double()
    worst = 0.0
    for seed, shape in enumerate(shapes):
        images = sample_images(shape, seed).to(images_like)
        found, expected = runtime(images).double(), _values(module, images)
        limit = max(TOLERANCE, ROUNDINGS * relative_difference(_values(exact, images.double()), expected))
        if isinstance(module, Suppressed):
            difference = suppression_difference(module, images, found, limit)
        elif module.model.layout.end_to_end:
            difference = finished_difference(expected, found, limit)
        else:
            difference = relative_difference(expected, found)
        if not difference <= limit:
            raise UserError(
                f"{path} does not give what PyTorch gives at shape {tuple(shape)}: relative difference "
                f"{difference:.2g}, by rounding at most {limit:.2g}; try another --opset, or --no-simplify"
            )
        worst = max(worst, difference)
    return worst


def _values(module: Decoded | Suppressed, images: Tensor) -> Tensor:
    """The decoded predictions, or what suppression chooses from: corners and confidences (N, A, 5); in float64."""
    if isinstance(module, Decoded):
        return module(images).double()
    boxes, _, confidence = module.candidates(images)
    return torch.cat((boxes, confidence), 2).double()


def relative_difference(expected: Tensor, found: Tensor) -> float:
    """The largest difference relative to the value, or to 1 for smaller values; infinite for other shapes."""
    if expected.shape != found.shape:
        return float("inf")
    return float(_relative(expected, found).max()) if expected.numel() else 0.0


def _relative(expected: Tensor, found: Tensor) -> Tensor:
    return (expected - found).abs() / expected.abs().clamp(min=1)


def finished_difference(expected: Tensor, found: Tensor, slack: float) -> float:
    """The largest relative difference of end-to-end rows (N, K, 6) from the nearest row of the other result.

    Rounding decides the order of equally confident rows and which of them are the last. So rows are not compared place
    by place, and those that are no better than the weakest are held to their confidence only.

    Args:
        expected: rows of PyTorch.
        found: rows of the file.
        slack: for confidences.
    """
    if expected.shape != found.shape:
        return float("inf")
    worst = relative_difference(expected[..., 4].sort().values, found[..., 4].sort().values)
    for pair in zip(expected, found):
        for rows, others in (pair, pair[::-1]):
            firm = rows[rows[:, 4] > rows[:, 4].min() + slack]
            if len(firm):
                nearest = _relative(firm[:, None], others[None]).amax(2).amin(1)  # (n,)
                worst = max(worst, float(nearest.max()))
    return worst


def suppression_difference(module: Suppressed, images: Tensor, rows: Tensor, slack: float) -> float:
    """The largest relative difference of rows (n, 7) from the module's candidates nearest to them.

    Infinite where the rows are no suppression of these candidates. Rounding decides which of two equally confident
    boxes stays, so the rows are held to what suppression means and not to one outcome: kept boxes do not overlap, and
    what is missing overlaps a kept box that is no less confident, or is weaker than all when the places are taken.

    Args:
        module: knows the candidates and the limits.
        images: (N, 3, H, W).
        rows: what the file gives for them.
        slack: for confidences.
    """
    worst = 0.0
    for image, candidates in enumerate(torch.cat(module.candidates(images), 2).double()):  # (A, 6)
        kept = rows[rows[:, 0] == image, 1:]  # (k, 6)
        possible = candidates[candidates[:, 5] > module.conf_thres - slack]
        if len(kept):
            if not len(possible):
                return float("inf")
            nearest = torch.stack([_relative(possible, row).amax(1).min() for row in kept])  # (k,)
            worst = max(worst, float(nearest.max()))
        required = _solid(candidates[candidates[:, 5] > module.conf_thres + slack])
        rivals = _overlaps(_solid(kept), _solid(kept), module.agnostic).fill_diagonal_(0) > module.iou_thres + IOU_SLACK
        close = _overlaps(required, kept, module.agnostic) > module.iou_thres - IOU_SLACK
        missing = required[~(close & (kept[:, 5] >= required[:, 5:] - slack)).any(1)]
        if len(kept) >= module.topk_all:
            missing = missing[missing[:, 5] > kept[:, 5].min() + slack]
        if rivals.any() or len(missing) or len(kept) > module.topk_all:
            return float("inf")
    return worst


def _solid(rows: Tensor) -> Tensor:
    """Those of the rows whose boxes have an area to speak of."""
    return rows[(rows[:, 2:4] - rows[:, :2]).amin(1) >= LEAST_SIDE]


def _overlaps(first: Tensor, second: Tensor, agnostic: bool) -> Tensor:
    """IoU (n, m) of rows [x1, y1, x2, y2, class, confidence]; 0 for different classes unless `agnostic`."""
    iou = pairwise_iou(first[:, :4], second[:, :4])
    return iou if agnostic else iou * (first[:, 4:5] == second[:, 4])
