"""What is exported: a detector with plain tensors in and out, with or without suppression inside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import nms

from models.yolo import Model
from utils.boxes import cxcywh_to_xyxy


class Decoded(nn.Module):
    """A detector whose only output is its decoded predictions."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)[0]


class Suppressed(nn.Module):
    """A detector with non-maximum suppression inside, made of ONNX's own operators.

    A box is a candidate for its best class alone. Boxes of different classes are moved apart so that only those of one
    class suppress one another.

    Args:
        model: a detector in evaluation whose predictions are not end-to-end.
        conf_thres: a candidate's confidence must exceed it.
        iou_thres: a box that overlaps a better one of its class by more is dropped.
        topk_all: boxes an image at most, the most confident.
        agnostic: boxes of different classes suppress one another too.
        max_wh: distance in pixels by which the classes are moved apart; None measures the boxes, which loses the
            fewest digits.
    """

    def __init__(
        self,
        model: Model,
        conf_thres: float = 0.25,
        iou_thres: float = 0.45,
        topk_all: int = 100,
        agnostic: bool = False,
        max_wh: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.conf_thres = conf_thres
        self.iou_thres = iou_thres
        self.topk_all = topk_all
        self.agnostic = agnostic
        self.max_wh = max_wh

    def forward(self, images: Tensor) -> Tensor:
        """(n, 7) rows [image, x1, y1, x2, y2, class, confidence] in pixels, by image and then by confidence."""
        boxes, class_index, confidence = self.candidates(images)
        moved = boxes
        if not self.agnostic:
            apart = boxes.max() - boxes.min() + 1 if self.max_wh is None else self.max_wh
            moved = boxes + class_index * apart
        limits = (self.topk_all, self.iou_thres, self.conf_thres)
        kept = _NonMaxSuppression.apply(moved, confidence.transpose(1, 2), *limits)  # (n, 3)
        rows = _Gather.apply(torch.cat((boxes, class_index, confidence), 2), kept[:, ::2])  # (n, 6)
        return torch.cat((kept[:, :1].to(rows.dtype), rows), 1)

    def candidates(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Corners (N, A, 4) of all boxes, their best classes (N, A, 1) and the confidences of those (N, A, 1)."""
        rows = self.model.layout.rows(self.model(images)[0])
        scores = self.model.layout.confidences(rows)
        confidence, class_index = scores.max(2, keepdim=True)
        return cxcywh_to_xyxy(rows[..., :4]), class_index.to(rows.dtype), confidence


class _NonMaxSuppression(torch.autograd.Function):
    """ONNX's operator of this name, and the same by torchvision where it runs in PyTorch."""

    @staticmethod
    def forward(ctx: Any, boxes: Tensor, scores: Tensor, most: int, iou_thres: float, score_thres: float) -> Tensor:
        """Rows (n, 3) [image, 0, box] of what is kept of boxes (N, A, 4) with scores (N, 1, A)."""
        rows = []
        for image in range(len(boxes)):
            passing = (scores[image, 0] > score_thres).nonzero()[:, 0]
            kept = passing[nms(boxes[image, passing], scores[image, 0, passing], iou_thres)[:most]]
            rows.append(torch.stack((torch.full_like(kept, image), torch.zeros_like(kept), kept), 1))
        return torch.cat(rows)

    @staticmethod
    def symbolic(g: Any, boxes: Any, scores: Any, most: int, iou_thres: float, score_thres: float) -> Any:
        """The operator in the graph `g`."""
        limits = (torch.tensor([most]), torch.tensor([iou_thres]), torch.tensor([score_thres]))
        return g.op("NonMaxSuppression", boxes, scores, *(g.op("Constant", value_t=limit) for limit in limits))


class _Gather(torch.autograd.Function):
    """Rows of each image by ONNX's GatherND.

    Indexing would multiply the image's number by the number of boxes, which PyTorch's exporter may take for a constant
    though the size of the images is free.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, places: Tensor) -> Tensor:
        """Rows (n, C) of a table (N, A, C) at places (n, 2) [image, row]."""
        return table[places[:, 0], places[:, 1]]

    @staticmethod
    def symbolic(g: Any, table: Any, places: Any) -> Any:
        """The operator in the graph `g`."""
        return g.op("GatherND", table, places)
