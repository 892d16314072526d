"""Suppression, letterbox, box scaling, AP and whole evaluations against the upstream implementations' numbers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from checkpoints.exported import LAYOUT_NAMES
from engine.inference.evaluate import evaluate
from engine.inference.writers import COCO_CATEGORIES
from models.families import FAMILIES
from tests.golden import load_json, load_npz, meta
from utils.boxes import cxcywh_to_xyxy, pairwise_iou, scale_boxes
from utils.evaluation.coco_eval import STATISTICS, CocoEvaluator, CocoResult, evaluate_json, read_annotations
from utils.evaluation.metrics import class_metrics, fitness, match_detections
from utils.letterbox import letterbox
from utils.nms import non_max_suppression

FAMILY_OF = {
    "yolov7": "yolov7",
    "yolov5_7.0": "yolov5",
    "ultralytics_8.2.103": "yolov8",
    "ultralytics_8.4.190": "yolov8",
}
LAYOUTS = {implementation: LAYOUT_NAMES[family] for implementation, family in FAMILY_OF.items()}
CONVENTIONS = {name: family.convention for name, family in FAMILIES.items()}
CONVENTIONS["yolov7-v5metric"] = CONVENTIONS["yolov7"].with_v5_recall()


def formula_image(height: int, width: int) -> np.ndarray:
    """The HWC test image, all integer arithmetic."""
    y, x, c = np.mgrid[:height, :width, :3]
    return ((3 * x + 5 * y + 50 * c + x * y // 8 + 60 * ((x // 8 + y // 8 + c) % 2)) % 256).astype(np.uint8)


# ---------------------------------------------------------------------------------------------- suppression


@pytest.mark.parametrize("implementation", LAYOUTS)
def test_nms_equals_upstream(implementation: str) -> None:
    arrays = load_npz("postprocess/nms.npz")
    facts = meta(arrays)
    keys = [key for key in facts["counts"] if key.startswith(implementation + "/")]
    assert len(keys) > 10
    for key in keys:
        _, source, variant = key.split("/")
        predictions, truth = torch.tensor(arrays[f"{source}/pred"]).float(), arrays[f"{source}/gt"]
        options: dict[str, Any] = dict(facts["variants"][variant])
        if "labels" in options:
            options["labels"] = [torch.tensor(truth[truth[:, 0] == i, 1:][:3]) for i in range(len(predictions))]
        if not LAYOUTS[implementation].objectness:
            scores = predictions[..., 5:] * predictions[..., 4:5]
            predictions = torch.cat([predictions[..., :4], scores], -1).transpose(1, 2)
        results = non_max_suppression(predictions, layout=LAYOUTS[implementation], **options)
        assert [len(rows) for rows in results] == facts["counts"][key], key
        stored = facts["same_as"].get(key, key)
        for image, rows in enumerate(results):
            if len(rows):
                found, expected = rows.numpy(), arrays[f"{stored}/{image}"]
                if variant == "hybrid":  # the known boxes share confidence 1, so their order is open
                    found, expected = found[np.lexsort(found.T)], expected[np.lexsort(expected.T)]
                np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-6, err_msg=key)


# ---------------------------------------------------------------------------------------------- geometry


def test_letterbox_equals_upstream() -> None:
    rows = load_json("postprocess/letterbox.json")["yolov7"]
    assert len(rows) > 200
    for in_h, in_w, new_shape, options, out_h, out_w, ratios, pads, top, bottom, left, right in rows:
        options = {{"scaleFill": "scale_fill"}.get(key, key): value for key, value in options.items()}
        shape = new_shape if isinstance(new_shape, int) else tuple(new_shape)
        image, found_ratios, found_pads = letterbox(np.zeros((in_h, in_w, 3), np.uint8), shape, **options)
        assert image.shape == (out_h, out_w, 3)
        assert found_ratios == pytest.approx(ratios) and found_pads == pytest.approx(pads)
        content = image[..., 0] == 0
        ys, xs = np.flatnonzero(content.any(1)), np.flatnonzero(content.any(0))
        assert (ys[0], out_h - 1 - ys[-1], xs[0], out_w - 1 - xs[-1]) == (top, bottom, left, right)


@pytest.mark.parametrize(("height", "width"), [(37, 53), (90, 41)])
def test_letterbox_pixels_equal_upstream(height: int, width: int) -> None:
    expected = load_npz("postprocess/boxes_ap_eval.npz")[f"letterbox_pixels/{height}x{width}"].astype(int)
    image, _, _ = letterbox(formula_image(height, width), 64, auto=False)
    assert np.abs(image.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("kind", [torch.tensor, np.asarray], ids=["tensor", "array"])
def test_scale_boxes_equals_upstream(kind: Any) -> None:
    arrays = load_npz("postprocess/boxes_ap_eval.npz")
    cases = meta(arrays)["scale_cases"]
    assert len(cases) == 5
    for case, (input_hw, original_hw, ratio_pad) in enumerate(cases):
        scaled = scale_boxes(kind(arrays["scale/in"]), input_hw, original_hw, ratio_pad)
        np.testing.assert_allclose(np.asarray(scaled), arrays[f"scale/yolov7/{case}"], atol=1e-4)


def test_pairwise_iou_equals_upstream() -> None:
    pairs = load_json("postprocess/helpers.json")["yolov7"]["box_pairs"]
    first, second = (cxcywh_to_xyxy(np.array(pairs[key])) for key in ("box1_xywh", "box2_xywh"))
    # upstream adds 1e-7 to heights and union, which shows on the box that is 0.001 high
    np.testing.assert_allclose(np.diagonal(pairwise_iou(first, second)), pairs["iou"], atol=5e-5)


# ---------------------------------------------------------------------------------------------- AP


AP_CASES = {
    "yolov7/default": "yolov7",
    "yolov7/v5metric": "yolov7-v5metric",
    "yolov5_7.0/default": "yolov5",
    "ultralytics_8.2.103/default": "yolov8",
}


@pytest.mark.parametrize(("key", "convention"), AP_CASES.items())
def test_ap_equals_upstream(key: str, convention: str) -> None:
    arrays = load_npz("postprocess/boxes_ap_eval.npz")
    tp, conf, predicted, true = (arrays[f"ap/in/{name}"] for name in ("tp", "conf", "pred_cls", "target_cls"))
    found = class_metrics(tp, conf, predicted, true, CONVENTIONS[convention])
    for ours, theirs in (("precision", "p"), ("recall", "r"), ("f1", "f1"), ("ap", "ap"), ("classes", "classes")):
        np.testing.assert_allclose(getattr(found, ours), arrays[f"ap/{key}/{theirs}"], atol=1e-9, err_msg=ours)


def test_fitness_equals_upstream() -> None:
    rows, expected = load_json("postprocess/helpers.json")["yolov7"]["fitness"]
    assert [fitness(row[2], row[3]) for row in rows] == pytest.approx(expected)


def test_coco_categories_equal_upstream() -> None:
    assert list(COCO_CATEGORIES) == load_json("postprocess/helpers.json")["yolov7"]["coco91"]


# ---------------------------------------------------------------------------------------------- whole evaluations


class Replay(nn.Module):
    """A detector that gives stored predictions, batch after batch."""

    names, nc, stride, input_hw = ["a", "b", "c", "d"], 4, torch.tensor([32.0]), None

    def __init__(self, predictions: Tensor, family: str) -> None:
        super().__init__()
        self.predictions, self.given = predictions, 0
        self.layout, self.convention = LAYOUT_NAMES[family], CONVENTIONS[family]

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        start, self.given = self.given, self.given + len(images)
        return self.predictions[start : self.given], []


def eval_batches(arrays: dict[str, np.ndarray], batch_size: int) -> list[SimpleNamespace]:
    facts, targets = meta(arrays), torch.tensor(arrays["eval/in/targets"])
    batches = []
    for start in range(0, len(facts["eval_shapes"]), batch_size):
        shapes = facts["eval_shapes"][start : start + batch_size]
        mine = targets[(targets[:, 0] >= start) & (targets[:, 0] < start + batch_size)]
        batches.append(
            SimpleNamespace(
                images=torch.zeros(len(shapes), 3, *facts["eval_hw"], dtype=torch.uint8),
                targets=mine - torch.tensor([start, 0, 0, 0, 0, 0]),
                paths=[f"{start + i}.jpg" for i in range(len(shapes))],
                shapes=[SimpleNamespace(original_hw=tuple(hw), ratio_pad=ratio_pad) for hw, ratio_pad in shapes],
            )
        )
    return batches


@pytest.mark.parametrize("batch_size", [4, 6])
def test_evaluation_equals_upstream(batch_size: int) -> None:
    arrays = load_npz("postprocess/boxes_ap_eval.npz")
    expected = meta(arrays)["eval"]
    assert len(expected) == 9
    for key, figures in expected.items():
        implementation, settings = key.split("/")
        conf_thres, iou_thres, variant = settings.split("_")
        result = evaluate(
            Replay(torch.tensor(arrays["eval/in/pred"]), FAMILY_OF[implementation]), eval_batches(arrays, batch_size),
            names=["a", "b", "c", "d"], device=torch.device("cpu"), conf_thres=float(conf_thres),
            iou_thres=float(iou_thres), v5_metric=variant == "v5metric", progress=False,
        )  # fmt: skip
        assert result.own.means == pytest.approx(figures["P_R_mAP50_mAP"], abs=1e-9), key
        np.testing.assert_allclose(result.own.ap, arrays[f"eval/{key}/ap"], atol=1e-9)
        np.testing.assert_allclose(result.own.ap.mean(1), figures["maps"], atol=1e-9)


@pytest.mark.parametrize("implementation", ["yolov7", "yolov5_7.0"])
def test_matching_equals_upstream(implementation: str) -> None:
    arrays = load_npz("postprocess/boxes_ap_eval.npz")
    key, input_hw = f"eval/{implementation}/0.001_0.65_default", meta(arrays)["eval_hw"]
    layout = LAYOUTS[implementation]
    rows = non_max_suppression(torch.tensor(arrays["eval/in/pred"]), 0.001, 0.65, multi_label=True, layout=layout)
    correct = []
    for image, detections in enumerate(rows):
        shape = meta(arrays)["eval_shapes"][image]
        labels = arrays["eval/in/targets"][arrays["eval/in/targets"][:, 0] == image]
        boxes = cxcywh_to_xyxy(labels[:, 2:]) * np.array([input_hw[1], input_hw[0]] * 2, dtype=np.float32)
        found = detections.numpy()
        found[:, :4] = scale_boxes(found[:, :4], input_hw, *shape)
        boxes = scale_boxes(boxes, input_hw, *shape)
        correct.append(match_detections(found, boxes, labels[:, 1], CONVENTIONS[FAMILY_OF[implementation]]))
    assert np.array_equal(np.concatenate(correct), arrays[f"{key}/tp"])


# ---------------------------------------------------------------------------------------------- COCO


def corners(records: list[dict[str, Any]]) -> np.ndarray:
    boxes = np.array([record["bbox"] for record in records]).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def coco_result(content: dict[str, Any], image_ids: list[int], one_class: bool = False) -> CocoResult:
    numbers = [category["id"] for category in content["gt"]["categories"]]
    evaluator = CocoEvaluator(["all"] if one_class else [str(number) for number in numbers])

    def classes(records: list[dict[str, Any]]) -> np.ndarray:
        return np.array([0 if one_class else numbers.index(record["category_id"]) for record in records], dtype=float)

    for image_id in image_ids:
        found = [record for record in content["dt"] if record["image_id"] == image_id]
        truth = [record for record in content["gt"]["annotations"] if record["image_id"] == image_id]
        scores = np.array([record["score"] for record in found])
        evaluator.add(
            image_id, np.column_stack([corners(found), scores, classes(found)]), corners(truth), classes(truth),
            crowd=np.array([record["iscrowd"] for record in truth]),
            area=np.array([record["area"] for record in truth]),
        )  # fmt: skip
    return evaluator.compute()


@pytest.mark.parametrize("setting", ["all", "subset_images", "agnostic"])
def test_coco_evaluator_equals_pycocotools(setting: str) -> None:
    content = load_json("postprocess/coco_eval.json")
    expected = content["results"][setting]
    ids = expected["params_changed"].get("imgIds", [image["id"] for image in content["gt"]["images"]])
    result = coco_result(content, ids, one_class=setting == "agnostic")
    assert [getattr(result, name) for name in STATISTICS] == pytest.approx(expected["stats"], abs=1e-9)
    for k, (ap, ap50) in enumerate(expected["per_category_AP_AP50"].values()):
        if ap < 0:
            assert np.isnan(result.per_class_ap[k]) and np.isnan(result.per_class_ap50[k])
        else:
            assert (result.per_class_ap[k], result.per_class_ap50[k]) == pytest.approx((ap, ap50), abs=1e-9)


@pytest.mark.parametrize("setting", ["all", "subset_images"])
def test_annotation_file_equals_pycocotools(setting: str, tmp_path: Path) -> None:
    content = load_json("postprocess/coco_eval.json")
    expected = content["results"][setting]
    ids = expected["params_changed"].get("imgIds", [image["id"] for image in content["gt"]["images"]])
    for record in content["gt"]["images"]:
        record["file_name"] = f"{record['id']:012d}.jpg"
    for record in content["gt"]["categories"]:
        record["name"] = f"category {record['id']}"
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content["gt"]))
    numbers, images = read_annotations(path, ["category 90", "category 3"])
    assert numbers == [90, 3] and ("000000000022.jpg", 22) in images
    found = [record for record in content["dt"] if record["image_id"] in ids]
    result = evaluate_json(found, path, ids)
    assert [getattr(result, name) for name in STATISTICS] == pytest.approx(expected["stats"], abs=1e-9)
