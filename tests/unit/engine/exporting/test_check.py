"""What an exported file may differ in."""

from __future__ import annotations

import math

import torch

from engine.exporting.check import finished_difference

ROWS = torch.tensor(
    [[[0, 0, 8, 8, 0.9, 1], [4, 4, 9, 9, 0.5, 0], [1, 1, 5, 5, 0.5, 2], [7, 7, 9, 9, 0.1, 0]]], dtype=torch.float64
)


def test_equally_confident_rows_may_change_places() -> None:
    assert finished_difference(ROWS, ROWS, 1e-6) == 0
    assert finished_difference(ROWS, ROWS[:, [0, 2, 1, 3]], 1e-6) == 0


def test_the_weakest_rows_may_be_others() -> None:
    other = ROWS.clone()
    other[0, 3, :4] = torch.tensor([20.0, 20, 30, 30])
    assert finished_difference(ROWS, other, 1e-6) == 0


def test_other_boxes_classes_and_confidences_are_seen() -> None:
    """x1 from 4 to 5 is a quarter; with class 2 the third row is nearest, its x1 3 of 4 away; confidence by 0.01."""
    for place, value, difference in ((0, 5.0, 0.25), (5, 2.0, 0.75), (4, 0.51, 0.01)):
        other = ROWS.clone()
        other[0, 1, place] = value
        assert math.isclose(finished_difference(ROWS, other, 1e-6), difference, rel_tol=1e-6), place
    assert finished_difference(ROWS, ROWS[:, :3], 1e-6) == math.inf
