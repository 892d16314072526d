"""Weights from a formula, so that two implementations can be compared without a checkpoint."""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection

import numpy as np
import torch

from models.yolo import Model

LEFT_AS_BUILT = (
    "num_batches_tracked",
    "anchors",
    "anchor_grid",
    "dfl.conv.weight",
    "bins",
    "pos_weight",
    "id_tensor",
    "weight_rbr_avg_avg",
    "weight_rbr_prior",
    "relative_coords_table",
    "relative_position_index",
)


def formula_tensor(key: str, shape: tuple[int, ...], gain: float) -> np.ndarray:
    """The value of one state_dict entry, float32; `gain` counts for convolution weights only."""
    uniform = np.random.RandomState(zlib.crc32(key.encode())).random_sample(math.prod(shape)).reshape(shape)
    noise = (2 * uniform - 1) * np.sqrt(3)  # zero mean, unit variance
    kind = key.rsplit(".", 1)[-1]
    if kind == "running_var":
        value = 0.5 + uniform
    elif kind in ("running_mean", "bias"):
        value = 0.1 * noise
    elif kind == "implicit":
        value = 0.1 * noise + (0 if ".ia." in key else 1)
    elif len(shape) == 1:
        value = 0.75 + 0.5 * uniform
    else:
        value = gain * noise / np.sqrt(math.prod(shape[1:]))
    return value.astype(np.float32)


def prediction_keys(model: Model) -> set[str]:
    """Keys of the last convolutions before the predictions."""
    head = f"model.{len(model.model) - 1}"
    if model.family == "mobile":
        return {f"model.{index}.weight" for index in (19, 24, 29)}
    if model.family == "yolov8":
        return {f"{head}.{branch}.{level}.2.weight" for branch in ("cv2", "cv3") for level in range(3)}
    return {key for key in model.state_dict() if key.startswith((f"{head}.m.", f"{head}.m2."))}


def load_formula_weights(model: Model, gain: float, head_gain: float) -> None:
    """Fills every entry but counters, anchors and the frozen bins."""
    predictions: Collection[str] = prediction_keys(model)
    weights = {
        key: torch.from_numpy(formula_tensor(key, tuple(value.shape), head_gain if key in predictions else gain))
        for key, value in model.state_dict().items()
        if not key.endswith(LEFT_AS_BUILT)
    }
    model.load_state_dict(weights, strict=False)
