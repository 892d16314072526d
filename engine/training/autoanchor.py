"""Anchors that fit a data set: a check of the given ones, and k-means with evolution for better ones.

The measure is upstream's: a box of a size can be matched to an anchor when neither side differs by more than
the factor `anchor_t`. Sources: Redmon & Farhadi, YOLO9000 (arXiv 1612.08242), section 2, for k-means over box sizes.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.cluster.vq import kmeans

from data.labels import DatasetIndex
from models.yolo import Model
from utils.logging import LOGGER

ACCEPTABLE_RECALL = 0.98
MAX_BOXES = 20_000
SMALLEST_SIDE = 2.0  # in pixels; boxes with both sides below are left out of the fit


def anchor_metrics(wh: np.ndarray, anchors: np.ndarray, anchor_t: float) -> dict[str, float]:
    """How well anchors fit boxes.

    Args:
        wh: box sizes in pixels, (n, 2).
        anchors: anchor sizes in pixels, (k, 2).
        anchor_t: largest ratio of sides that still matches, such as 4.

    Returns:
        best_possible_recall: share of boxes that match at least one anchor, 0 to 1.
        anchors_above_threshold: mean number of anchors that match a box.
        fitness: mean over boxes of the best ratio where it matches, else 0.
        mean_best_ratio: mean over boxes of the best ratio.
    """
    ratio = wh[:, None] / anchors[None]  # (n, k, 2)
    closeness = np.minimum(ratio, 1 / ratio).min(2)  # (n, k)
    best = closeness.max(1)
    threshold = 1 / anchor_t
    return {
        "best_possible_recall": float((best > threshold).mean()),
        "anchors_above_threshold": float((closeness > threshold).sum(1).mean()),
        "fitness": float((best * (best > threshold)).mean()),
        "mean_best_ratio": float(best.mean()),
    }


def fit_anchors(
    wh: np.ndarray, num_anchors: int, anchor_t: float, generations: int = 1000, seed: int = 0
) -> np.ndarray:
    """Anchors by k-means on the sizes divided by their spread, then improved by random mutation.

    Returns:
        (num_anchors, 2) in pixels, sorted by area.
    """
    rng = np.random.default_rng(seed)
    wh = wh[(wh >= SMALLEST_SIDE).any(1)].astype(float)
    if len(wh) > MAX_BOXES:
        wh = wh[rng.choice(len(wh), MAX_BOXES, replace=False)]
    spread = wh.std(0).clip(1e-3)
    distinct = np.unique(wh, axis=0)
    enough = len(distinct) > num_anchors
    centres = kmeans(wh / spread, num_anchors, iter=30, seed=rng)[0] * spread if enough else distinct
    if len(centres) < num_anchors:  # too few different sizes for k-means
        missing = num_anchors - len(centres)
        extra = wh[rng.integers(0, len(wh), missing)] * rng.uniform(0.5, 2.0, (missing, 2))
        centres = np.concatenate([centres, extra])
    best, best_fitness = centres, anchor_metrics(wh, centres, anchor_t)["fitness"]
    for _ in range(generations):
        change = np.where(rng.random(best.shape) < 0.9, 1 + rng.standard_normal(best.shape) * 0.1 * rng.random(), 1.0)
        candidate = (best * change.clip(0.3, 3.0)).clip(2.0)
        fitness = anchor_metrics(wh, candidate, anchor_t)["fitness"]
        if fitness > best_fitness:
            best, best_fitness = candidate, fitness
    return best[np.argsort(best.prod(1))]


def box_sizes(index: DatasetIndex, img_size: int, seed: int = 0) -> np.ndarray:
    """Sizes of all boxes in pixels of the network input, (n, 2), each image scaled by 0.9 to 1.1 at random."""
    rng = np.random.default_rng(seed)
    sizes = []
    for record in index.records:
        scale = img_size / max(record.width, record.height) * rng.uniform(0.9, 1.1)
        sizes.append(record.labels[:, 3:5] * np.array([record.width, record.height]) * scale)
    return np.concatenate(sizes) if sizes else np.zeros((0, 2))


def check_anchors(model: Model, index: DatasetIndex, img_size: int, anchor_t: float) -> bool:
    """Replaces the model's anchors when they fit the data set's boxes badly and better ones are found.

    Returns:
        Whether the anchors were replaced.
    """
    head = model.head
    if head.anchors_px is None:
        return False
    wh = box_sizes(index, img_size)
    if not (wh >= SMALLEST_SIDE).any():
        return False
    pixels = head.anchors_px.cpu()  # (levels, na, 2)
    current = pixels.view(-1, 2).double().numpy()
    before = anchor_metrics(wh, current, anchor_t)
    text = "anchors: best possible recall {best_possible_recall:.4f}, {anchors_above_threshold:.2f} anchors a box"
    text = text.format(**before)
    if before["best_possible_recall"] > ACCEPTABLE_RECALL:
        LOGGER.info(f"{text}: a good fit to the data")
        return False
    fitted = fit_anchors(wh, len(current), anchor_t)
    after = anchor_metrics(wh, fitted, anchor_t)
    if after["best_possible_recall"] <= before["best_possible_recall"]:
        LOGGER.info(f"{text}; k-means found none better, the anchors stay")
        return False
    by_stride = torch.tensor(head.strides).argsort().argsort()  # small anchors to small strides, in whatever order
    head.set_anchors(torch.tensor(fitted).view_as(pixels)[by_stride])
    LOGGER.info(f"{text}; new anchors reach {after['best_possible_recall']:.4f}: {fitted.round().astype(int).tolist()}")
    return True
