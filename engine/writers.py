"""Detections as files: label text files in YOLO format, and COCO's JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.predict_output import label_lines
from utils.errors import UserError
from utils.paths import replacing

# COCO's category numbers of the 80 classes in their usual order: 1 to 90, of which ten were never used.
COCO_CATEGORIES = tuple(i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))


class LabelWriter:
    """Writes a text file for each image that something was found in."""

    def __init__(self, folder: Path, with_confidence: bool = False) -> None:
        self.folder = folder
        self.with_confidence = with_confidence
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, path: str, original_hw: tuple[int, int], detections: np.ndarray) -> None:
        """Writes the detections of the image `path` to <its stem>.txt."""
        if len(detections):
            lines = label_lines(detections, original_hw, self.with_confidence)
            with replacing(self.folder / f"{Path(path).stem}.txt") as stream:
                stream.write("\n".join(lines) + "\n")


class CocoWriter:
    """Collects detections in COCO's results format.

    Args:
        categories: COCO's category number of each class.
        image_ids: COCO's number of an image by the stem of its file; without it, the stem itself, as a number if it is
            one.
    """

    def __init__(self, categories: Sequence[int], image_ids: Mapping[str, int] | None = None) -> None:
        self.categories = categories
        self.image_ids = image_ids
        self.records: list[dict[str, Any]] = []
        self.seen: list[int | str] = []

    def __call__(self, path: str, original_hw: tuple[int, int], detections: np.ndarray) -> None:
        """Adds the detections of the image `path`."""
        image_id = self._image_id(path)
        self.seen.append(image_id)
        for x1, y1, x2, y2, confidence, category in detections.astype(np.float64).tolist():
            box = [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)]
            self.records.append(
                {
                    "image_id": image_id,
                    "category_id": int(self.categories[int(category)]),
                    "bbox": box,
                    "score": round(confidence, 5),
                }
            )

    def _image_id(self, path: str) -> int | str:
        stem = Path(path).stem
        if self.image_ids is None:
            return int(stem) if stem.isdecimal() else stem
        if stem not in self.image_ids:
            raise UserError(f"image {path} is not in the annotation file; give the one that describes these images")
        return self.image_ids[stem]

    def save(self, path: Path) -> None:
        """Writes everything collected as one JSON list."""
        with replacing(path) as stream:
            json.dump(self.records, stream)
