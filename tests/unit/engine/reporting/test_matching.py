from __future__ import annotations

import numpy as np
import pytest

from engine.reporting.matching import (
    RECALLS,
    Matches,
    best_confidence,
    draw_images,
    match,
    percentile_interval,
    precision_over_recall,
    resampled_ap,
)
from utils.evaluation.coco_eval import CocoEvaluator

NUM_CLASSES = 3


def images(number: int = 40, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Labels, and detections near some of them, several on the same box, beside false ones; some of class 1 only."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(number):
        count = random.integers(0, 7)
        corner, size = random.uniform(0, 80, (count, 2)), random.uniform(8, 30, (count, 2))
        boxes, classes = np.hstack([corner, corner + size]), random.integers(0, NUM_CLASSES - 1, count)
        near = np.repeat(boxes, 3, 0) + random.normal(0, 2.5, (3 * count, 4))
        wrong = random.uniform(0, 60, (5, 2))
        rows = np.vstack([near, np.hstack([wrong, wrong + 20])])
        named = np.concatenate([np.repeat(classes, 3), random.integers(0, NUM_CLASSES, 5)])
        rows = np.column_stack([rows, random.random(len(rows)), named])
        made.append((rows[np.argsort(-rows[:, 4])], boxes, classes))
    return made


def collected(made: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Matches:
    matches = Matches(NUM_CLASSES)
    for each in made:
        matches.add(*each)
    return matches


def coco_ap(made: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> float:
    evaluator = CocoEvaluator(["a", "b", "c"])
    for number, each in enumerate(made):
        evaluator.add(number, *each)
    return evaluator.compute().ap


def test_the_ap_of_all_images_is_coco_s() -> None:
    made = images()
    found = resampled_ap(collected(made).by_class(), np.ones((1, len(made)), np.int64))
    assert found[0] == pytest.approx(coco_ap(made), abs=1e-9)


def test_a_resample_is_what_coco_finds_on_those_images() -> None:
    made = images()
    weights = draw_images(len(made), 4)
    assert weights.sum(1).tolist() == [len(made)] * 4 and (weights > 1).any()
    found = resampled_ap(collected(made).by_class(), weights)
    for row, value in zip(weights, found):
        drawn = [each for each, times in zip(made, row) for _ in range(times)]
        assert value == pytest.approx(coco_ap(drawn), abs=1e-9)


def test_the_images_are_drawn_alike_for_every_model() -> None:
    assert np.array_equal(draw_images(20, 5), draw_images(20, 5))


def test_nothing_to_measure() -> None:
    empty = Matches(2)
    empty.add(np.zeros((0, 6)), np.zeros((0, 4)), np.zeros(0))
    assert np.isnan(resampled_ap(empty.by_class(), np.ones((1, 1), np.int64))).all()
    assert precision_over_recall(empty.by_class()).tolist() == [0.0] * 101
    assert best_confidence(empty.by_class()) == 1.0
    assert percentile_interval(np.array([np.nan]), 0.95) is None


def test_percentiles() -> None:
    assert percentile_interval(np.append(np.arange(101.0), np.nan), 0.9) == pytest.approx((5.0, 95.0))


def test_a_box_is_taken_by_the_more_confident_and_by_the_better_free_one() -> None:
    labels = np.array([[0.0, 0, 10, 10], [0, 0, 10, 9]])
    boxes = np.array([[0.0, 0, 10, 9], [0, 0, 10, 9], [0, 0, 10, 9]])
    # the first takes label 1 (IoU 1); the second label 0 (0.9); nothing is left for the third
    assert match(boxes, labels)[:, 0].tolist() == [1, 0, -1]
    assert match(boxes, labels)[1].tolist() == [0] * 9 + [-1]


def test_curves_and_confidence() -> None:
    matches = Matches(1)
    boxes = np.array([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    rows = np.array(
        [[0, 0, 10, 10, 0.9, 0], [50, 50, 60, 60, 0.8, 0], [20, 20, 30, 30, 0.7, 0], [5, 40, 9, 60, 0.1, 0]]
    )
    matches.add(rows, boxes, np.zeros(2))
    assert matches.found[0].tolist() == [0.9, 0.7]
    curve = precision_over_recall(matches.by_class())
    assert curve[RECALLS <= 0.5].tolist() == [1.0] * 51 and curve[-1] == pytest.approx(2 / 3)
    # F1 after 1, 2, 3, 4 detections: 2/3, 2/4, 4/5, 4/6
    assert best_confidence(matches.by_class()) == 0.7
