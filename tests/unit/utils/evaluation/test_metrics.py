"""Matching, average precision, fitness and the confusion matrix on hand-worked examples."""

from __future__ import annotations

import numpy as np
import pytest

from utils.evaluation.confusion import ConfusionMatrix
from utils.evaluation.metrics import (
    YOLOV5_FIGURES,
    YOLOV7_FIGURES,
    YOLOV8_FIGURES,
    average_precision,
    class_metrics,
    fitness,
    match_detections,
)

V5, V7, V7_TO_ONE = YOLOV5_FIGURES, YOLOV7_FIGURES, YOLOV7_FIGURES.with_v5_recall()
CONVENTIONS = {"yolov5": V5, "yolov7": V7, "yolov7-v5metric": V7_TO_ONE, "yolov8": YOLOV8_FIGURES}
BOX = [0.0, 0.0, 10.0, 10.0]


def rows(*detections: tuple[list[float], float, int]) -> np.ndarray:
    return np.array([[*box, confidence, index] for box, confidence, index in detections], dtype=np.float32)


def matched(detections: np.ndarray, boxes: list[list[float]], classes: list[int], convention: str) -> list[int]:
    """How many of the ten thresholds each detection passes."""
    truth = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    correct = match_detections(detections, truth, np.array(classes, dtype=np.float32), CONVENTIONS[convention])
    return correct.sum(1).tolist()


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_perfect_box_passes_every_threshold(convention: str) -> None:
    assert matched(rows((BOX, 0.9, 2)), [BOX], [2], convention) == [10]


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_wrong_class_and_second_detection_do_not_count(convention: str) -> None:
    assert matched(rows((BOX, 0.9, 1)), [BOX], [2], convention) == [0]
    assert matched(rows((BOX, 0.9, 2), (BOX, 0.8, 2)), [BOX], [2], convention) == [10, 0]


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_nothing_found_or_nothing_there(convention: str) -> None:
    assert matched(rows((BOX, 0.9, 2)), [], [], convention) == [0]
    assert matched(np.zeros((0, 6), np.float32), [BOX], [2], convention) == []


def test_poor_first_claim_blocks_a_better_one_in_yolov7_only() -> None:
    poor, good = [0.0, 0.0, 10.0, 6.2], [0.0, 0.0, 10.0, 9.7]  # IoU 0.62 (passes .50 .55 .60), 0.97 (passes all)
    detections = rows((poor, 0.9, 0), (good, 0.5, 0))
    assert matched(detections, [BOX], [0], "yolov7") == [3, 0]
    assert matched(detections, [BOX], [0], "yolov5") == [3, 7]  # from 0.65 on the first no longer claims it


def test_threshold_itself_passes_in_yolov5_only() -> None:
    half = rows(([0.0, 0.0, 10.0, 5.0], 0.9, 0))  # IoU exactly 0.5
    assert matched(half, [BOX], [0], "yolov5") == [1]
    assert matched(half, [BOX], [0], "yolov7") == [0]


def test_average_precision_of_half_the_objects() -> None:
    recall, precision = np.array([0.5]), np.array([1.0])
    # v7: falls to 0 at recall 0.51; 101 points: 51 ones (0 to 0.50), then 0: trapezoids 0.50 + 0.01 / 2
    assert average_precision(recall, precision, V7)[0] == pytest.approx(0.505)
    # v5: falls in a straight line from (0.5, 1) to (1, 0): 0.5 + 0.25
    assert average_precision(recall, precision, V5)[0] == pytest.approx(0.75)


def test_average_precision_uses_the_envelope() -> None:
    recall, precision = np.array([0.5, 0.5, 1.0]), np.array([1.0, 0.5, 2 / 3])
    area, curve = average_precision(recall, precision, V7)
    # 1 up to 0.5, 2/3 (not 1/2) from there: 0.5 + 0.5 * 2/3, less half a step for the drop between 0.50 and 0.51
    assert area == pytest.approx(0.5 + 0.5 * 2 / 3, abs=0.01)
    assert (np.diff(curve) <= 1e-12).all() and curve[0] == 1


def test_class_metrics_of_a_perfect_detector() -> None:
    correct = np.ones((6, 10), dtype=bool)
    classes = np.array([0, 0, 1, 1, 3, 3])
    for convention in CONVENTIONS.values():
        result = class_metrics(correct, np.linspace(0.9, 0.8, 6), classes, classes, convention)
        assert result.classes.tolist() == [0, 1, 3]
        assert result.means[:2] == pytest.approx((1, 1))
        # v7 ends the recall axis at 1.01, so AP is 1; with the end at 1 the last of 101 points is 0: 1 - 0.01 / 2
        assert result.means[3] == pytest.approx(1.0 if not convention.recall_to_one else 0.995)


def test_class_metrics_at_the_best_confidence() -> None:
    # Right at 0.9 and 0.8, wrong at 0.3; 2 objects. Best at 799 / 999, the last of 1000 samples below 0.8, where P is
    # interpolated between 1 (at 0.8) and 2/3 (at 0.3).
    correct = np.zeros((3, 10), dtype=bool)
    correct[:2] = True
    result = class_metrics(correct, np.array([0.9, 0.8, 0.3]), np.zeros(3), np.zeros(2), V7)
    assert result.best_confidence == pytest.approx(799 / 999)
    assert result.precision == pytest.approx([1 - (0.8 - 799 / 999) / 0.5 / 3])
    assert result.recall == pytest.approx([1.0])
    assert result.f1_curve[0, 0] == pytest.approx(2 * (2 / 3) / (2 / 3 + 1))  # with everything: P 2/3, R 1


def test_order_of_detections_does_not_matter() -> None:
    generator = np.random.default_rng(0)
    correct, confidence = generator.random((50, 10)) > 0.5, generator.random(50)
    predicted, true = generator.integers(0, 4, 50), generator.integers(0, 4, 40)
    order = generator.permutation(50)
    first = class_metrics(correct, confidence, predicted, true, V7)
    second = class_metrics(correct[order], confidence[order], predicted[order], true, V7)
    np.testing.assert_array_equal(first.ap, second.ap)


def test_class_metrics_of_nothing() -> None:
    nothing = np.zeros((0, 10), dtype=bool)
    result = class_metrics(nothing, np.zeros(0), np.zeros(0), np.zeros(0), V5)
    assert result.means == (0, 0, 0, 0)
    missed = class_metrics(nothing, np.zeros(0), np.zeros(0), np.array([4, 4]), V7_TO_ONE)
    assert missed.classes.tolist() == [4] and missed.means == (0, 0, 0, 0)


def test_fitness_weighs_ap_most() -> None:
    assert fitness(0.5, 0.3) == pytest.approx(0.05 + 0.27)
    assert fitness(float("nan"), float("nan")) == 0


# ------------------------------------------------------------------------------------------------ confusion


def test_confusion_counts_every_kind_of_outcome() -> None:
    confusion = ConfusionMatrix(3)
    far = [100.0, 100.0, 120.0, 120.0]
    found = rows((BOX, 0.9, 0), ([30.0, 30.0, 40.0, 40.0], 0.8, 1), (far, 0.7, 2), (far, 0.2, 0))
    boxes = np.array([BOX, [30, 30, 40, 40], [60, 60, 70, 70]], dtype=np.float32)
    confusion.add(found, boxes, np.array([0, 2, 1]))
    expected = np.zeros((4, 4))
    expected[0, 0] = 1  # right
    expected[1, 2] = 1  # a 2 taken for a 1
    expected[3, 1] = 1  # a 1 missed
    expected[2, 3] = 1  # a 2 where there is nothing; the detection at 0.2 is below the threshold
    assert np.array_equal(confusion.matrix, expected)


def test_confusion_pairs_one_to_one_by_overlap() -> None:
    confusion = ConfusionMatrix(2)
    found = rows(([0.0, 0.0, 10.0, 7.0], 0.9, 1), (BOX, 0.5, 0))
    confusion.add(found, np.array([BOX], dtype=np.float32), np.array([0]))
    assert confusion.matrix[0, 0] == 1  # the better overlap, not the higher confidence
    assert confusion.matrix[1, 2] == 1  # the other one found nothing


def test_confusion_counts_images_without_labels_or_detections() -> None:
    confusion = ConfusionMatrix(2)
    confusion.add(rows((BOX, 0.9, 1)), np.zeros((0, 4), np.float32), np.zeros(0))
    confusion.add(np.zeros((0, 6), np.float32), np.array([BOX], dtype=np.float32), np.array([0]))
    assert confusion.matrix[1, 2] == 1 and confusion.matrix[2, 0] == 1 and confusion.matrix.sum() == 2


def test_confusion_shares_sum_to_one_where_there_is_anything() -> None:
    confusion = ConfusionMatrix(2)
    confusion.matrix[:] = [[3, 0, 1], [1, 0, 1], [0, 0, 0]]
    np.testing.assert_allclose(confusion.normalized().sum(0), [1, 0, 1])
