"""Average precision exactly as the COCO benchmark defines it, for any data set.

The matching and accumulation are faster-coco-eval's, whose numbers are pycocotools'. Lin et al., Microsoft COCO: Common
Objects in Context, ECCV 2014; https://cocodataset.org/#detection-eval.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster

from utils.boxes import box_area
from utils.errors import UserError, unknown_name
from utils.logging import LOGGER
from utils.names import match_names
from utils.text import printable, shown, shown_path

ArrayLike = np.ndarray | torch.Tensor


@dataclass(frozen=True)
class CocoResult:
    """COCO's twelve numbers in 0..1, and the AP of each class; NaN where there is no ground truth to measure on.

    Attributes:
        ap: mean over classes and over IoU 0.50, 0.55, ..., 0.95.
        ap50, ap75: at one IoU.
        ap_small, ap_medium, ap_large: by area of the ground truth, up to 32^2, up to 96^2, and beyond, in pixels.
        ar_1, ar_10, ar_100: mean recall with this many detections per image and class.
        ar_small, ar_medium, ar_large: mean recall by area, with 100 detections.
        per_class_ap, per_class_ap50: (nc,) arrays.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar_1: float
    ar_10: float
    ar_100: float
    ar_small: float
    ar_medium: float
    ar_large: float
    per_class_ap: np.ndarray
    per_class_ap50: np.ndarray


LARGEST = 1e150  # of a number in an annotation file
STATISTICS = tuple(CocoResult.__dataclass_fields__)[:12]  # in the order in which COCO lists them


class CocoEvaluator:
    """Collects detections and ground truth image by image, then computes COCO's numbers.

    Args:
        names: class names; a class is its index here.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._images: list[dict[str, Any]] = []
        self._categories = [{"id": index, "name": name} for index, name in enumerate(names)]
        self._truth: list[dict[str, Any]] = []
        self._found: list[dict[str, Any]] = []

    def add(
        self,
        image_id: int,
        detections: ArrayLike,
        boxes_xyxy: ArrayLike,
        classes: ArrayLike,
        crowd: ArrayLike | None = None,
        area: ArrayLike | None = None,
    ) -> None:
        """Adds one image.

        Args:
            image_id: its number, different for every image.
            detections: (n, 6) rows [x1, y1, x2, y2, confidence, class] in pixels of the original image.
            boxes_xyxy: (m, 4) ground truth in pixels of the original image.
            classes: (m,) its classes.
            crowd: (m,) true for a box around a crowd: missing it is no error, nor is hitting it more than once.
            area: (m,) areas in pixels where they are not those of the boxes (COCO takes them from masks).
        """
        image_id = int(image_id)
        found, truth = _array(detections).reshape(-1, 6), _array(boxes_xyxy).reshape(-1, 4)
        crowd = np.zeros(len(truth)) if crowd is None else _array(crowd)
        area = box_area(truth) if area is None else _array(area)
        self._images.append({"id": image_id})
        _append(self._found, image_id, found[:, :4], found[:, 5], area=box_area(found), score=found[:, 4])
        _append(self._truth, image_id, truth, _array(classes), area=area, iscrowd=crowd.astype(int))

    def compute(self) -> CocoResult:
        """The result over all images added so far."""
        return _evaluate(self._coco(self._truth), self._coco(self._found))

    def _coco(self, annotations: list[dict[str, Any]]) -> COCO:
        return COCO({"images": self._images, "categories": self._categories, "annotations": annotations})


def read_annotations(path: Path, names: Sequence[str]) -> tuple[list[int], list[tuple[str, int]]]:
    """The category number of each class name, and file name and number of each image, of a COCO annotation file.

    Annotations that will not count, as they have no box, are told.

    Raises:
        UserError: the file is no annotation file, lacks a class, gives several images one number, or has an
            annotation of no image or category.
    """
    content, where = _load_annotations(path), f"annotation file {shown_path(path)}"
    numbers, known = _numbers(content["categories"], "name", where), [entry["name"] for entry in content["categories"]]
    places = match_names(names, known, "the data set's classes", f"the categories of {where}")
    for name, place in zip(names, places):
        if place is None:
            raise unknown_name("category", name, known, where)
    _check_unique(numbers, "categories", where)
    images = list(
        zip((entry["file_name"] for entry in content["images"]), _numbers(content["images"], "file_name", where))
    )
    _check_unique([number for _, number in images], "images", where)
    lost = [entry for entry in content["annotations"] if _complete(entry, 0, where) is None]
    if lost:
        LOGGER.warning(
            f"warning: {where}: {len(lost)} of {len(content['annotations'])} annotations have no `bbox` of four "
            f"numbers and do not count, first {shown(lost[0])}"
        )
    return [numbers[place] for place in places if place is not None], images


def _check_unique(numbers: Sequence[int], what: str, where: str) -> None:
    twice = [number for number, count in Counter(numbers).items() if count > 1]
    if twice:
        raise UserError(f"{where}: the number {shown(twice[0])} is that of several {what}; give each its own")


def _numbers(entries: Sequence[Any], name: str, where: str) -> list[int]:
    """The `id` of each entry, once it has one and its name is a text."""
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get(name), str) or type(entry.get("id")) is not int:
            raise UserError(f"{where}: expected a whole number `id` and a text `{name}`, found {shown(entry)}")
    return [entry["id"] for entry in entries]


def evaluate_json(
    detections: list[dict[str, Any]], path: Path, image_ids: Iterable[Any], single_class: bool = False
) -> CocoResult:
    """Detections in COCO's results format against an annotation file, with its crowds and areas.

    Args:
        detections: dictionaries of image_id, category_id, bbox (left, top, width, height in pixels) and score.
        path: the annotation file.
        image_ids: the images that were looked at; others in the file do not count.
        single_class: take all categories for one.

    Raises:
        UserError: an annotation is of no image or category.
    """
    content, seen = _load_annotations(path), set(image_ids)
    content["images"] = [image for image in content["images"] if image["id"] in seen]
    where = f"annotation file {shown_path(path)}"
    truth = [_complete(entry, number, where) for number, entry in enumerate(content["annotations"], 1)]
    content["annotations"] = [entry for entry in truth if entry and entry["image_id"] in seen]
    found = [
        {**record, "id": number, "area": record["bbox"][2] * record["bbox"][3]}
        for number, record in enumerate(detections, 1)
    ]
    if single_class:
        content["categories"] = [{"id": 0, "name": "item"}]
        for entry in (*content["annotations"], *found):
            entry["category_id"] = 0
    return _evaluate(COCO(content), COCO({**content, "annotations": found}))


def _complete(entry: Any, number: int, where: str) -> dict[str, Any] | None:
    """An annotation with what may be left out of it: its number, its area, and that it is no crowd; None without a box.

    Raises:
        UserError: it does not say by numbers of what image and category it is, so it would count for none.
    """
    fields = entry if isinstance(entry, dict) else {}
    ids = [_number(fields.get(key)) for key in ("image_id", "category_id")]
    if any(number is None or number % 1 for number in ids):
        expected = "expected an annotation with whole numbers `image_id` and `category_id`"
        raise UserError(f"{where}: {expected}, found {shown(entry)}")
    box = fields.get("bbox")
    sides = [side for side in map(_number, box if isinstance(box, list) else []) if side is not None]
    if not isinstance(box, list) or len(sides) != 4 or len(box) != 4:
        return None
    area = _number(fields.get("area"))
    crowd = fields.get("iscrowd") not in (None, 0, "0", "", False)
    return {
        "id": number,
        "image_id": fields["image_id"],
        "category_id": fields["category_id"],
        "bbox": sides,
        "area": sides[2] * sides[3] if area is None else area,
        "iscrowd": int(crowd),
    }


def _number(value: Any) -> int | float | None:
    """A finite number that computing with it leaves finite, or None."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return value if plain and abs(value) <= LARGEST else None


def _load_annotations(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"annotation file {shown_path(path)} is not JSON ({printable(error, 200)})") from error
    lists = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in lists):
        raise UserError(
            f"annotation file {shown_path(path)} must hold images, annotations and categories, as COCO's do"
        )
    return content


def _evaluate(truth: COCO, found: COCO) -> CocoResult:
    evaluation = COCOeval_faster(truth, found, "bbox", print_function=_silent)
    evaluation.run()
    stats = np.where(evaluation.stats < 0, np.nan, evaluation.stats)  # COCO marks "nothing to measure" by -1
    precision = evaluation.eval["precision"][..., 0, -1]  # (10 IoUs, 101 recalls, nc): all areas, 100 detections
    precision = np.where(precision < 0, np.nan, precision)
    numbers: dict[str, Any] = dict(zip(STATISTICS, stats.tolist()))
    return CocoResult(**numbers, per_class_ap=precision.mean((0, 1)), per_class_ap50=precision[0].mean(0))


def _append(
    records: list[dict[str, Any]], image_id: int, boxes_xyxy: np.ndarray, classes: np.ndarray, **columns: np.ndarray
) -> None:
    """Appends boxes in COCO's form: a dictionary each, the box as left, top, width, height, numbered from 1."""
    sides = np.concatenate([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]], axis=1)
    rows = zip(sides.tolist(), classes.astype(int).tolist(), *(column.tolist() for column in columns.values()))
    for number, (box, category, *values) in enumerate(rows, start=len(records) + 1):
        record = {"id": number, "image_id": image_id, "category_id": category, "bbox": box}
        record.update(zip(columns, values))
        records.append(record)


def _array(values: ArrayLike) -> np.ndarray:
    """float64 on the host: pycocotools computes in it, and a float32 box would differ in the last digits."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype=np.float64)


def _silent(*_: object) -> None:
    """Takes the place of the library's progress messages."""
