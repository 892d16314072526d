"""What evaluation, detection and export ask of a detector, and how to read what it predicts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from utils.boxes import xyxy_to_cxcywh
from utils.errors import UserError
from utils.evaluation.metrics import Convention


@dataclass(frozen=True)
class Layout:
    """How decoded predictions are laid out, and what the confidence of a box is.

    A box is a column of values: centre x, y, width, height in pixels, then objectness where there is one, then a score
    for each class, all scores in [0, 1]. With `end_to_end` it is [x1, y1, x2, y2, confidence, class] instead, and the
    boxes are final: nothing is left to suppress.

    Attributes:
        class_axis: along which the values of a box lie: 2 for (N, boxes, values), 1 for (N, values, boxes).
        objectness: the confidence in a class is objectness times the score of the class; without, it is the score.
        objectness_alone: with a single class the confidence is the objectness, whatever the score.
        end_to_end: the network chooses the final boxes itself.
    """

    class_axis: int = 2
    objectness: bool = False
    objectness_alone: bool = False
    end_to_end: bool = False

    def __post_init__(self) -> None:
        """Refuses values that contradict each other with a ValueError."""
        if self.class_axis not in (1, 2) or self.end_to_end and (self.objectness or self.class_axis != 2):
            raise ValueError(f"{self} is no layout of predictions")
        if self.objectness_alone and not self.objectness:
            raise ValueError(f"{self} takes the objectness alone, but has none")

    def __str__(self) -> str:
        """What a box has, and where."""
        parts = "corners, confidence, class" if self.end_to_end else "box, objectness, classes"
        parts = parts if self.objectness or self.end_to_end else "box, classes"
        alone = ", one class by objectness alone" if self.objectness_alone else ""
        return f"{parts} along axis {self.class_axis}{alone}"

    @property
    def box_axis(self) -> int:
        """The axis along which the boxes lie."""
        return 3 - self.class_axis

    @property
    def before_classes(self) -> int:
        """Values of a box before its class scores."""
        return 4 + self.objectness

    def num_values(self, num_classes: int) -> int:
        """Values of a box."""
        return 6 if self.end_to_end else self.before_classes + num_classes

    def rows(self, decoded: Tensor) -> Tensor:
        """Decoded predictions as (N, boxes, values), or such rows as decoded predictions: it is its own inverse."""
        return decoded if self.class_axis == 2 else decoded.transpose(1, 2)

    def confidences(self, rows: Tensor) -> Tensor:
        """(..., nc) confidence in each class, of rows (..., values) that are not end-to-end."""
        scores = rows[..., self.before_classes :]
        if not self.objectness:
            return scores
        alone = self.objectness_alone and scores.shape[-1] == 1
        return rows[..., 4:5] if alone else scores * rows[..., 4:5]

    def most_confident(self, rows: Tensor) -> Tensor:
        """(...) what the confidence of a row (..., values) cannot exceed, without a product."""
        return rows[..., 4] if self.objectness or self.end_to_end else rows[..., 4:].amax(-1)

    def of_finished(self, boxes_xyxy: Tensor, class_index: Tensor, confidence: Tensor, num_classes: int) -> Tensor:
        """Rows (n, values) of boxes (n, 4) that are known with one class (n,) and confidence (n,) each."""
        if self.end_to_end:
            return torch.cat((boxes_xyxy, confidence[:, None], class_index[:, None].to(boxes_xyxy)), 1)
        scores = nn.functional.one_hot(class_index.long(), num_classes).to(boxes_xyxy)
        boxes = xyxy_to_cxcywh(boxes_xyxy)
        if self.objectness:
            return torch.cat((boxes, confidence[:, None], scores), 1)
        return torch.cat((boxes, scores * confidence[:, None]), 1)

    def reordered(self, decoded: Tensor, order: Sequence[int]) -> Tensor:
        """Decoded predictions with the classes in another order: for each of the new ones its index until now."""
        if self.end_to_end:
            new_index = torch.as_tensor(order).argsort().to(decoded.device)
            return torch.cat((decoded[..., :5], new_index[decoded[..., 5:].long()].to(decoded)), -1)
        places = [*range(self.before_classes), *(self.before_classes + index for index in order)]
        return decoded.index_select(self.class_axis, torch.tensor(places, device=decoded.device))


ANCHOR_LAYOUT = Layout(objectness=True)
"""Of heads with anchors: box, objectness, class scores, a row a box."""
ANCHOR_FREE_LAYOUT = Layout(class_axis=1)
"""Of heads without anchors: box and class scores, a column a box."""


class Detector(Protocol):
    """A network that turns images into decoded predictions: a model, several that vote, or an exported file.

    Each of them is an `nn.Module` as well.
    """

    training: bool

    @property
    def names(self) -> Sequence[str]:
        """Names of the classes."""

    @property
    def nc(self) -> int:
        """Number of classes."""

    @property
    def stride(self) -> Tensor:
        """(levels,) pixels a cell; sides of an image are multiples of the largest."""

    @property
    def layout(self) -> Layout:
        """How the decoded predictions are laid out."""

    @property
    def convention(self) -> Convention:
        """How the program that the detector comes from computes its figures."""

    @property
    def input_hw(self) -> tuple[int, int] | None:
        """The only height and width that it takes, in pixels; None where any multiple of the stride will do."""

    def __call__(self, images: Tensor, *, augment: bool = False) -> tuple[Tensor, Any]:
        """Detects, in evaluation.

        Args:
            images: (N, 3, H, W) in [0, 1].
            augment: with test-time augmentation.

        Returns:
            The decoded predictions, and the raw maps of a network's head or None.
        """

    def eval(self) -> Detector:
        """Sets it to evaluation."""

    def train(self, mode: bool = True) -> Detector:
        """Sets it to training, or to evaluation."""

    def to(self, *args: Any, **kwargs: Any) -> Detector:
        """Brings its weights to a device or a dtype."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Its weights."""


def as_detector(model: Any) -> Detector:
    """`model` itself, once it says what a detector must say of itself.

    Raises:
        UserError: it lacks something; a layout is never guessed.
    """
    wanted = ("names", "nc", "stride", "layout", "convention", "input_hw")
    missing = [name for name in wanted if not hasattr(model, name)]
    if missing or not isinstance(model.layout, Layout):
        raise UserError(
            f"{type(model).__name__} cannot be used as a detector: it has no {', '.join(missing) or 'Layout'}; "
            "give it what utils.detector.Detector names"
        )
    return model
