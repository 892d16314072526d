"""A model on a split, measured for a report: COCO's figures, and what each image contributed to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from data.loader import validation_loader
from data.records import DatasetIndex, ImageRecord
from engine.inference.evaluate import VALIDATION_IOU, EvalResult, evaluate
from engine.reporting.matching import Matches, best_confidence, draw_images, precision_over_recall, resampled_ap
from models.yolo import Model
from utils.boxes import cxcywh_to_xyxy


@dataclass(frozen=True)
class Measured:
    """What a model does on the images of a split, in the order of the split's records.

    Attributes:
        result: the figures.
        resampled: (resamples,) AP of resampled images.
        curve: (101,) precision over recall 0..1 at IoU 0.5, mean over the classes.
        confidence: at which the model's F1 at IoU 0.5 is highest; boxes below are not shown and do not count as found.
        found: for each image (m,) whether each labelled box is found.
        detections: for each image (n, 6) boxes from `confidence` on, in its pixels.
    """

    result: EvalResult
    resampled: np.ndarray
    curve: np.ndarray
    confidence: float
    found: list[np.ndarray]
    detections: list[np.ndarray]


def measure(
    model: Model,
    index: DatasetIndex,
    names: Sequence[str],
    device: torch.device,
    img_size: int,
    batch_size: int,
    workers: int,
    progress: bool = True,
) -> Measured:
    """Evaluates a model as a training's validation does.

    Args:
        model: its classes in the order of `names`.
        index: images and labels of the split.
        names: of the classes.
        device: where to compute; the model is there.
        img_size: longer side of the network input in pixels.
        batch_size, workers: of the loader.
        progress: show a bar.
    """
    loader = validation_loader(index, img_size, batch_size, workers, int(max(model.stride)))
    collected: dict[str, np.ndarray] = {}

    def collect(path: str, original_hw: tuple[int, int], detections: np.ndarray) -> None:
        collected[path] = detections

    result = evaluate(
        model, loader, names=names, device=device, iou_thres=VALIDATION_IOU, writers=[collect], progress=progress
    )
    matches = Matches(len(names))
    detections = [collected.get(record.path, np.zeros((0, 6), np.float32)) for record in index.records]
    for record, rows in zip(index.records, detections):
        boxes = labelled_boxes(record)
        matches.add(rows, boxes[:, :4], boxes[:, 5])
    by_class = matches.by_class()
    confidence = best_confidence(by_class)
    return Measured(
        result=result,
        resampled=resampled_ap(by_class, draw_images(len(index.records))),
        curve=precision_over_recall(by_class),
        confidence=confidence,
        found=[scores >= confidence for scores in matches.found],
        detections=[rows[rows[:, 4] >= confidence] for rows in detections],
    )


def labelled_boxes(record: ImageRecord) -> np.ndarray:
    """The labels of an image as detections, (n, 6) rows x1, y1, x2, y2, 1, class in pixels."""
    boxes = cxcywh_to_xyxy(record.labels[:, 1:5]) * np.array([record.width, record.height] * 2, dtype=np.float32)
    return np.concatenate([boxes, np.ones((len(boxes), 1)), record.labels[:, :1]], axis=1)
