"""What the losses of all anchor-based heads share: predicted boxes, and the terms of one level for an assignment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from losses.anchor_assign import Assignment
from losses.functional import background_cross_entropy, binary_cross_entropy, masked_mean, one_hot, smoothed_targets
from losses.iou import box_overlap
from utils.errors import UserError

BALANCE = {3: (4.0, 1.0, 0.4)}
LONG_BALANCE = (4.0, 1.0, 0.25, 0.06, 0.02)


class Terms(NamedTuple):
    """Box, objectness and class terms, each a scalar."""

    box: Tensor
    obj: Tensor
    cls: Tensor


def compute_dtype(prediction: Tensor) -> torch.dtype:
    """Losses are computed in float32 whatever the predictions are, and in float64 where they are."""
    return torch.float64 if prediction.dtype == torch.float64 else torch.float32


def scale_gains(
    box: float, cls: float, obj: float, num_levels: int, num_classes: int, image_size: int
) -> tuple[float, float, float]:
    """Gains for a head and an image size, from the values of a hyper-parameter file of YOLOv5 or YOLOv7.

    Those mean 3 levels, 80 classes and 640 pixels: more levels share the gain, the class term grows with the classes
    and the objectness term with the area.

    Args:
        box, cls, obj: gains as written in the file.
        num_levels: detection levels, without auxiliary ones.
        num_classes: classes of the data set.
        image_size: longer side of the training images, pixels.

    Returns:
        (box, cls, obj) for the loss.
    """
    levels = 3 / num_levels
    return box * levels, cls * num_classes / 80 * levels, obj * (image_size / 640) ** 2 * levels


def decode_boxes(logits: Tensor, anchors: Tensor) -> Tensor:
    """(..., 4) logits, (..., 2) anchors in cells -> centre relative to the cell's corner, width, height, in cells."""
    scores = logits.sigmoid() * 2
    return torch.cat([scores[..., :2] - 0.5, scores[..., 2:].square() * anchors], -1)


class AnchorLoss(nn.Module):
    """Gains and terms of the anchor-based losses.

    Args:
        anchors: (L, A, 2) widths and heights in cells of their level, as the model's buffer holds them.
        strides: L, pixels a cell.
        num_classes: C; with one class the class term is left out.
        box: gain of the box term, 1 - CIoU. See `losses.scale_gains` for the values that hyper-parameter files mean.
        obj: gain of the objectness term.
        cls: gain of the class term.
        cls_pw: weight of the positive part of the class term.
        obj_pw: weight of the positive part of the objectness term.
        anchor_t: largest factor between a box's and an anchor's sides.
        fl_gamma: exponent of the focal loss; 0 is plain cross-entropy.
        label_smoothing: e in [0, 1): class targets are 1 - e/2 and e/2.
        balance: factor of the objectness term of each level.
        height_eps: rounding of CIoU; 0 is YOLOv5's, 1e-7 YOLOv7's. The difference is about 1e-7.

    Raises:
        UserError: anchors, strides or balance do not have the same number of levels.
    """

    anchors: Tensor

    def __init__(
        self,
        anchors: Tensor,
        strides: Sequence[float] | Tensor,
        num_classes: int,
        *,
        box: float = 0.05,
        obj: float = 1.0,
        cls: float = 0.5,
        cls_pw: float = 1.0,
        obj_pw: float = 1.0,
        anchor_t: float = 4.0,
        fl_gamma: float = 0.0,
        label_smoothing: float = 0.0,
        balance: Sequence[float] | None = None,
        height_eps: float = 0.0,
    ) -> None:
        super().__init__()
        anchors = torch.as_tensor(anchors).detach().clone()
        self.strides = tuple(float(stride) for stride in strides)
        self.num_levels = len(self.strides)
        if anchors.dim() != 3 or anchors.shape[0] != self.num_levels or anchors.shape[2] != 2:
            raise UserError(
                f"loss: anchors have shape {tuple(anchors.shape)}; expected ({self.num_levels}, anchors, 2), "
                f"one set for each of the {self.num_levels} strides"
            )
        default = BALANCE.get(self.num_levels, LONG_BALANCE[: self.num_levels])
        self.balance = tuple(default if balance is None else balance)
        if len(self.balance) != self.num_levels:
            raise UserError(f"loss: balance has {len(self.balance)} values; expected {self.num_levels}, one a level")
        self.register_buffer("anchors", anchors, persistent=False)
        self.anchors_on_host = anchors.cpu()  # candidates of targets in host memory are found there
        self.num_anchors = anchors.shape[1]
        self.num_classes = num_classes
        self.gains = {"box": box, "obj": obj, "cls": cls}
        self.cls_pw, self.obj_pw = cls_pw, obj_pw
        self.anchor_t, self.fl_gamma, self.height_eps = anchor_t, fl_gamma, height_eps
        self.positive, self.negative = smoothed_targets(label_smoothing)

    def anchors_on(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """(L, A, 2) anchors in cells."""
        return (self.anchors_on_host if device.type == "cpu" else self.anchors).to(device, dtype)

    def check_inputs(self, predictions: Sequence[Tensor], targets: Tensor, num_maps: int) -> None:
        """Raises UserError where the maps or the targets do not fit this loss."""
        if len(predictions) != num_maps:
            raise UserError(f"loss: the head gives {len(predictions)} maps; this loss expects {num_maps}")
        channels = 5 + self.num_classes
        for level, prediction in enumerate(predictions):
            shape = tuple(prediction.shape)
            if len(shape) != 5 or shape[1] != self.num_anchors or shape[4] != channels:
                raise UserError(
                    f"loss: map {level} has shape {shape}; expected (images, {self.num_anchors}, rows, columns, "
                    f"{channels}) for {self.num_anchors} anchors and {self.num_classes} classes"
                )
        check_targets(targets)

    def terms(self, predictions: Sequence[Tensor], assignments: Sequence[Assignment]) -> Terms:
        """Terms before their gains, summed over the levels."""
        levels = range(self.num_levels)
        terms = [self._level_terms(predictions[level], assignments[level], level) for level in levels]
        return Terms(*(torch.stack(values).sum() for values in zip(*terms)))

    def _level_terms(self, prediction: Tensor, assignment: Assignment, level: int) -> Terms:
        """Terms of one map (B, A, rows, columns, 5 + C)."""
        dtype = compute_dtype(prediction)
        valid = assignment.valid
        rows = prediction.flatten(0, 3).index_select(0, assignment.position).to(dtype)  # (M, 5 + C)
        boxes = decode_boxes(rows[:, :4], assignment.anchors)
        # Entries outside the mask are computed too: comparing a box with itself keeps their gradients finite.
        target_boxes = torch.where(valid[:, None], assignment.boxes, boxes.detach())
        ciou = box_overlap(boxes, target_boxes, "ciou", height_eps=self.height_eps, aspect_eps=self.height_eps)
        box = masked_mean(1 - ciou, valid)

        # Every cell counts as background; the few cells with a box, of which the last entry counts, are set right.
        background = background_cross_entropy(prediction[..., 4].flatten().to(dtype), self.fl_gamma)  # (cells,)
        scores, logits = ciou.detach().clamp(min=0), rows[:, 4]
        correction = binary_cross_entropy(logits, scores, self.obj_pw, self.fl_gamma)
        correction = correction - background_cross_entropy(logits, self.fl_gamma)
        correction = torch.where(last_of_cell(assignment), correction, 0)  # (M,)
        obj = (background.sum() + correction.sum()) / len(background) * self.balance[level]

        if self.num_classes == 1:
            return Terms(box, obj, torch.zeros_like(box))
        positive = one_hot(assignment.classes, self.num_classes)  # (M, C)
        class_targets = torch.full_like(rows[:, 5:], self.negative).masked_fill(positive, self.positive)
        cls = binary_cross_entropy(rows[:, 5:], class_targets, self.cls_pw, self.fl_gamma)
        return Terms(box, obj, masked_mean(cls, valid))

    def total(self, terms: Terms, batch_size: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to back-propagate, and its parts with their gains, detached."""
        items = {name: getattr(terms, name) * gain for name, gain in self.gains.items()}
        loss = (items["box"] + items["obj"] + items["cls"]) * batch_size
        return loss, {name: value.detach() for name, value in items.items()}


def last_of_cell(assignment: Assignment) -> Tensor:
    """(M,) whether an entry is valid and no later valid one is at the same cell."""
    position = torch.where(assignment.valid, assignment.position, -1)
    position, order = position.sort(stable=True)
    is_last = torch.ones_like(assignment.valid)
    is_last[:-1] = position[1:] != position[:-1]
    return torch.zeros_like(is_last).scatter(0, order, is_last) & assignment.valid


def check_targets(targets: Tensor) -> None:
    """Raises UserError unless the targets are (T, 6)."""
    if targets.dim() != 2 or targets.shape[1] != 6:
        raise UserError(
            f"loss: targets have shape {tuple(targets.shape)}; expected (boxes, 6), rows [image, class, cx, cy, w, h]"
        )
