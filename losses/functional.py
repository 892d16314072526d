"""Small pure functions shared by the detection losses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

FOCAL_ALPHA = 0.25
LOW_BITS = (1 << 32) - 1
PAIRS_AT_ONCE = 1 << 22  # bounds the memory of a matching: values held in one tensor of rows times columns


def smoothed_targets(label_smoothing: float) -> tuple[float, float]:
    """Targets of the positive and of the negative classes: (1 - e/2, e/2).

    Args:
        label_smoothing: e in [0, 1); 0 gives (1.0, 0.0).
    """
    return 1.0 - label_smoothing / 2, label_smoothing / 2


def binary_cross_entropy(logits: Tensor, targets: Tensor, pos_weight: float = 1.0, gamma: float = 0.0) -> Tensor:
    """Binary cross-entropy on logits, element by element, optionally focal.

    The focal form (Lin et al. 2017) multiplies by `alpha_t * (1 - p_t) ** gamma` with alpha 0.25; for soft targets
    alpha_t and p_t interpolate between the two classes.

    Args:
        logits: (...).
        targets: (...), in [0, 1].
        pos_weight: factor of the positive part.
        gamma: focusing exponent; 0 is plain cross-entropy (without alpha).

    Returns:
        (...), not reduced.
    """
    if pos_weight == 1.0:
        loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    else:
        # The library's pos_weight is a tensor, and making one on a GPU at every call would wait for the device.
        loss = (1 - targets) * logits - (1 + (pos_weight - 1) * targets) * F.logsigmoid(logits)
    if gamma == 0.0:
        return loss
    scores = logits.sigmoid()
    score_of_target = targets * scores + (1 - targets) * (1 - scores)
    alpha = targets * FOCAL_ALPHA + (1 - targets) * (1 - FOCAL_ALPHA)
    return loss * alpha * (1 - score_of_target) ** gamma


def background_cross_entropy(logits: Tensor, gamma: float = 0.0) -> Tensor:
    """`binary_cross_entropy` for targets that are all 0, in fewer passes: it is needed at every cell of a map."""
    loss = -F.logsigmoid(-logits)
    return loss if gamma == 0.0 else loss * (1 - FOCAL_ALPHA) * logits.sigmoid() ** gamma


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask` holds, and 0 where it holds nowhere.

    Args:
        values: (M,) or (M, C); finite everywhere, also outside the mask.
        mask: (M,) booleans.

    Returns:
        A scalar: over M, and over C as well where there is one.
    """
    weight = mask.to(values.dtype) / mask.sum().clamp(min=1)  # (M,)
    if values.dim() == 2:
        values = values.mean(1)
    return (values * weight).sum()


def one_hot(classes: Tensor, num_classes: int) -> Tensor:
    """(...) class indices -> (..., num_classes) booleans. An index out of range gives a row of False."""
    return classes[..., None] == torch.arange(num_classes, device=classes.device)


def denormalise(boxes_cxcywh: Tensor, width: float, height: float) -> Tensor:
    """(..., 4) boxes as fractions of an image -> in the unit in which the image has this width and height."""
    cx, cy, w, h = boxes_cxcywh.unbind(-1)
    return torch.stack([cx * width, cy * height, w * width, h * height], -1)


def sortable(values: Tensor, order: Tensor) -> Tensor:
    """Whole numbers that sort as float32 values do, and as `order` where values are equal.

    A sort or a top-k of floats leaves the order of equal ones open, and it differs between devices.

    Args:
        values: (...) float32, not negative; infinity sorts last.
        order: (...) int64 in [0, 2 ** 32); `sorted_order` gives it back.
    """
    # The bits of floats that are not negative sort as the floats do.
    return (values.view(torch.int32).long() << 32) + order


def sorted_order(numbers: Tensor) -> Tensor:
    """The `order` that `sortable` put into its numbers."""
    return numbers & LOW_BITS


def row_blocks(num_rows: int, num_columns: int) -> list[slice]:
    """Blocks of about equal size such that rows times columns stays within `PAIRS_AT_ONCE`, or of at most two rows.

    Their number is a power of two, so a compiled graph holds for all numbers of rows that lead to the same one.
    """
    blocks = 1
    while blocks * PAIRS_AT_ONCE < num_rows * num_columns and 2 * blocks <= num_rows:
        blocks *= 2
    return [slice(index * num_rows // blocks, (index + 1) * num_rows // blocks) for index in range(blocks)]


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies without waiting for what the device still has to do."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
