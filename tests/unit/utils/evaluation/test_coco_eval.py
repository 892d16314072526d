"""COCO's figures against pycocotools itself on random data, and on cases with a known answer."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from utils.errors import UserError
from utils.evaluation.coco_eval import STATISTICS, CocoEvaluator, evaluate_json, read_annotations

Image = dict[str, np.ndarray]


def random_image(generator: np.random.Generator, nc: int, num_boxes: int, num_noise: int) -> Image:
    """Boxes of all sizes, detections near most of them, noise elsewhere, some crowds."""
    corner, size = generator.random((num_boxes, 2)) * 400, np.exp(generator.uniform(2, 5.5, (num_boxes, 2)))
    boxes = np.concatenate([corner, corner + size], axis=1)
    classes = generator.integers(0, nc, num_boxes)
    near = boxes + generator.normal(0, 1, boxes.shape) * size.repeat(2, 1) * 0.08
    noise_corner = generator.random((num_noise, 2)) * 400
    noise = np.concatenate([noise_corner, noise_corner + generator.random((num_noise, 2)) * 150 + 1], axis=1)
    found = np.concatenate([near, noise])
    predicted = np.concatenate([classes, generator.integers(0, nc, num_noise)])
    scores = generator.random(len(found))
    return {
        "boxes": boxes,
        "classes": classes,
        "crowd": generator.random(num_boxes) < 0.1,
        "area": size.prod(1) * generator.uniform(0.5, 1, num_boxes),
        "found": np.column_stack([found, scores, predicted]),
    }


def reference(images: list[Image], nc: int) -> tuple[np.ndarray, np.ndarray]:
    """pycocotools' twelve figures and its precision array."""
    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for image_id, image in enumerate(images):
        for box, index, crowd, area in zip(image["boxes"], image["classes"], image["crowd"], image["area"]):
            bbox = [*box[:2], *(box[2:] - box[:2])]
            record = {"id": len(truth) + 1, "image_id": image_id, "category_id": int(index), "bbox": bbox}
            truth.append({**record, "iscrowd": int(crowd), "area": area})
        for row in image["found"]:
            bbox = [*row[:2], *(row[2:4] - row[:2])]
            found.append({"image_id": image_id, "category_id": int(row[5]), "bbox": bbox, "score": row[4]})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i} for i in range(len(images))],
            "annotations": truth,
            "categories": [{"id": i, "name": str(i)} for i in range(nc)],
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats, evaluation.eval["precision"]


def evaluator_of(images: list[Image], nc: int) -> CocoEvaluator:
    evaluator = CocoEvaluator([str(i) for i in range(nc)])
    for image_id, image in enumerate(images):
        evaluator.add(
            image_id, image["found"], image["boxes"], image["classes"], crowd=image["crowd"], area=image["area"]
        )
    return evaluator


@pytest.mark.parametrize(("seed", "nc", "num_noise"), [(0, 1, 5), (1, 4, 30), (2, 6, 0), (3, 2, 160)])
def test_equals_pycocotools_on_random_data(seed: int, nc: int, num_noise: int) -> None:
    generator = np.random.default_rng(seed)
    images = [random_image(generator, nc, int(generator.integers(0, 9)), num_noise) for _ in range(12)]
    expected, precision = reference(images, nc)
    result = evaluator_of(images, nc).compute()
    found = np.array([getattr(result, name) for name in STATISTICS])
    np.testing.assert_allclose(np.nan_to_num(found, nan=-1), expected, atol=1e-9)
    for index in range(nc):
        mine = precision[:, :, index, 0, -1]
        assert result.per_class_ap[index] == pytest.approx(mine.mean() if mine.min() >= 0 else np.nan, nan_ok=True)


def test_perfect_detector_has_ap_one() -> None:
    evaluator = CocoEvaluator(["a", "b", "never there"])
    boxes = np.array([[0, 0, 10, 10], [20, 20, 80, 80], [100, 100, 300, 300]], dtype=float)  # small, medium, large
    classes = np.array([0, 1, 0])
    evaluator.add(7, np.column_stack([boxes, [0.9, 0.8, 0.7], classes]), boxes, classes)
    result = evaluator.compute()
    assert [getattr(result, name) for name in STATISTICS] == pytest.approx([1] * 6 + [0.75, 1, 1, 1, 1, 1])
    # with one detection an image and class, class a finds one of its two boxes, class b all: (0.5 + 1) / 2
    assert result.per_class_ap[:2].tolist() == [1, 1] and np.isnan(result.per_class_ap[2])


def test_iou_decides_between_ap50_and_ap() -> None:
    evaluator = CocoEvaluator(["a"])
    # 72 of 100 pixels overlap: right at 0.50 to 0.70, five of the ten thresholds
    evaluator.add(0, np.array([[0, 0, 10, 7.2, 0.9, 0]]), np.array([[0, 0, 10, 10.0]]), np.array([0]))
    result = evaluator.compute()
    assert (result.ap50, result.ap75, result.ap) == pytest.approx((1, 0, 0.5))


def test_takes_tensors() -> None:
    evaluator = CocoEvaluator(["a"])
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    evaluator.add(0, torch.cat([box, torch.tensor([[0.5, 0.0]])], 1), box, torch.zeros(1))
    assert evaluator.compute().ap == pytest.approx(1)


def test_nothing_to_measure_is_nan_and_nothing_found_is_zero() -> None:
    evaluator = CocoEvaluator(["a"])
    evaluator.add(0, np.zeros((0, 6)), np.zeros((0, 4)), np.zeros(0))
    assert np.isnan(evaluator.compute().ap)
    assert np.isnan(CocoEvaluator(["a"]).compute().ap)
    evaluator.add(1, np.zeros((0, 6)), np.array([[0, 0, 10.0, 10.0]]), np.zeros(1))
    assert evaluator.compute().ap == 0


def test_prints_nothing(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        evaluator_of([random_image(np.random.default_rng(0), 2, 5, 5)], 2).compute()
    assert capfd.readouterr() == ("", "") and not caplog.records


def test_annotation_file_mistakes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    path.write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        read_annotations(path, [])
    path.write_text("[]")
    with pytest.raises(UserError, match="must hold images, annotations and categories"):
        read_annotations(path, [])
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": [{"id": 3, "name": "zebra"}]}))
    assert read_annotations(path, ["zebra"]) == ([3], [])
    with pytest.raises(UserError, match="unknown category 'zebras'; did you mean 'zebra'"):
        read_annotations(path, ["zebras"])
    twice = [{"id": 3, "name": "zebra"}, {"id": 3, "name": "horse"}]
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": twice}))
    with pytest.raises(UserError, match="the number 3 is that of several categories"):
        read_annotations(path, ["zebra", "horse"])


@pytest.mark.parametrize(
    "odd",
    [
        {"image_id": [1]},
        {"image_id": "1"},  # a number as text would count for no image, without a word
        {"category_id": "3"},
        {"category_id": 3.5},
    ],
    ids=str,
)
def test_an_annotation_that_could_not_count_is_named(tmp_path: Path, odd: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="expected an annotation with whole numbers `image_id` and `category_id`"):
        read_annotations(annotated(tmp_path, odd), ["zebra"])  # before anything is evaluated


@pytest.mark.parametrize("box", [None, [0, 0, 10**400, 5], [0, True, 5, 5], [0, 0, 5, 5, "x"], "x"], ids=str)
def test_an_annotation_without_a_box_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, box: Any
) -> None:
    monkeypatch.setattr("utils.logging.LOGGER.propagate", True)
    path = annotated(tmp_path, {})
    content = json.loads(path.read_text())
    content["annotations"].append({**content["annotations"][0], "bbox": box})
    path.write_text(json.dumps(content))
    read_annotations(path, ["zebra"])
    assert "1 of 2 annotations have no `bbox` of four numbers and do not count" in caplog.text
    found = [{"image_id": 1, "category_id": 3, "bbox": [0, 0, 5, 5], "score": 0.9}]
    assert evaluate_json(found, path, [1]).ap == pytest.approx(1)


@pytest.mark.parametrize("odd", [{"iscrowd": None}, {"area": None}, {"area": "large"}, {"id": 0}, {"image_id": 1.0}])
def test_what_an_annotation_may_leave_out_may_be_null_too(tmp_path: Path, odd: dict[str, Any]) -> None:
    found = [{"image_id": 1, "category_id": 3, "bbox": [0, 0, 5, 5], "score": 0.9}]
    assert evaluate_json(found, annotated(tmp_path, odd), [1]).ap == pytest.approx(1)


def annotated(folder: Path, changes: dict[str, Any]) -> Path:
    """An annotation file of one image with one object."""
    path = folder / "instances.json"
    annotation = {"image_id": 1, "category_id": 3, "bbox": [0, 0, 5, 5], **changes}
    images, categories = [{"id": 1, "file_name": "a.jpg"}], [{"id": 3, "name": "zebra"}]
    path.write_text(json.dumps({"images": images, "annotations": [annotation], "categories": categories}))
    return path
