"""Which class is taken for which, and what is missed or found where nothing is."""

from __future__ import annotations

import numpy as np

from utils.boxes import pairwise_iou


class ConfusionMatrix:
    """Counts of matched classes, with the background as one more class.

    Attributes:
        matrix: (nc + 1, nc + 1) counts; row: predicted class, column: true class, last of both: background. So the last
            row counts missed boxes, the last column detections of nothing.

    Args:
        nc: number of classes.
        conf_thres: detections up to this confidence are left out.
        iou_thres: a detection and a box belong together when they overlap by more.
    """

    def __init__(self, nc: int, conf_thres: float = 0.25, iou_thres: float = 0.45) -> None:
        self.nc = nc
        self.conf_thres = conf_thres
        self.iou_thres = iou_thres
        self.matrix = np.zeros((nc + 1, nc + 1), dtype=np.int64)

    def add(self, detections: np.ndarray, boxes_xyxy: np.ndarray, classes: np.ndarray) -> None:
        """Adds an image.

        Args:
            detections: (n, 6) rows [x1, y1, x2, y2, confidence, class].
            boxes_xyxy: (m, 4) ground truth in the same pixels.
            classes: (m,) its classes.
        """
        detections = detections[detections[:, 4] > self.conf_thres]
        predicted, true = detections[:, 5].astype(int), classes.astype(int)
        found, box = self._pairs(detections[:, :4], boxes_xyxy)
        missed = np.setdiff1d(np.arange(len(true)), box)
        invented = np.setdiff1d(np.arange(len(predicted)), found)
        np.add.at(self.matrix, (predicted[found], true[box]), 1)
        np.add.at(self.matrix, (self.nc, true[missed]), 1)
        np.add.at(self.matrix, (predicted[invented], self.nc), 1)

    def _pairs(self, detected_xyxy: np.ndarray, boxes_xyxy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Indices of detections and of their boxes, one to one, best overlap first, whatever the classes."""
        iou = pairwise_iou(detected_xyxy, boxes_xyxy)  # (n, m)
        found, box = np.nonzero(iou > self.iou_thres)
        order = np.argsort(-iou[found, box], kind="stable")
        found, box = found[order], box[order]
        for side in (0, 1):
            first = np.sort(np.unique((found, box)[side], return_index=True)[1])
            found, box = found[first], box[first]
        return found, box

    def normalized(self) -> np.ndarray:
        """Shares of each true class, columns summing to 1, (nc + 1, nc + 1); a column without boxes stays 0."""
        return self.matrix / np.maximum(self.matrix.sum(0, keepdims=True), 1)
