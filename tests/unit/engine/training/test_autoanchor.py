from __future__ import annotations

import numpy as np
import pytest

from engine.training.autoanchor import anchor_metrics, fit_anchors
from tests.golden import load_json

COCO_P5 = [10, 13, 16, 30, 33, 23, 30, 61, 62, 45, 59, 119, 116, 90, 156, 198, 373, 326]


@pytest.mark.parametrize("threshold", [4.0, 2.9])
def test_metrics_equal_the_reference(threshold: float) -> None:
    golden = load_json("postprocess/anchors.json")
    got = anchor_metrics(np.array(golden["wh_px"]), np.array(COCO_P5, float).reshape(-1, 2), threshold)
    expected = golden["metrics"][f"coco_p5_thr{threshold}"]
    assert got["best_possible_recall"] == pytest.approx(expected["bpr"], rel=1e-6)
    assert got["anchors_above_threshold"] == pytest.approx(expected["aat"], rel=1e-6)
    assert got["fitness"] == pytest.approx(expected["fitness"], rel=1e-6)
    assert got["mean_best_ratio"] == pytest.approx(expected["mean_best"], rel=1e-6)


def test_fit_reaches_the_reference_fitness() -> None:
    golden = load_json("postprocess/anchors.json")
    wh = np.array(golden["wh_px"])
    anchors = fit_anchors(wh, 9, 4.0)
    assert (np.diff(anchors.prod(1)) > 0).all()
    reference = golden["kmeans9_thr4_gen1000_seed0"]["yolov5_7.0"]["fitness"]
    assert anchor_metrics(wh, anchors, 4.0)["fitness"] >= 0.98 * reference


def test_few_distinct_sizes() -> None:
    anchors = fit_anchors(np.array([[10.0, 10.0], [20.0, 20.0]] * 5), 9, 4.0, generations=10)
    assert anchors.shape == (9, 2)
    assert np.isfinite(anchors).all()
