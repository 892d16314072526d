"""The weights that shares came to, as they are printed at the end of a training."""

from __future__ import annotations

from typing import Any

import yaml

from engine.config.hyp import Hyp
from engine.config.options import TrainOptions
from engine.distilling.shares import found_weights

ONE = TrainOptions(teacher_weights="t.pt")


def pasted(lines: list[str]) -> Any:
    """What a recipe reads of the lines below their heading."""
    return yaml.safe_load("\n".join(lines[1:]))


def test_entries_as_a_recipe_has_them() -> None:
    hyp = Hyp(
        kd_losses={
            "fgd": {"share": 0.4, "temperature": 0.5},
            "output": {"box": 2, "share": {"box": 0.2, "obj": 0.1}},
            "cwd": {"weight": 3},
            "pkd": None,
        }
    )
    row = {"factor/kd/fgd": "0.0000123456", "factor/kd/output/box": 1.23456, "factor/kd/output/obj": ""}
    lines = found_weights(row, ONE, hyp)
    assert lines[0] == "weights that the shares came to; to fix them, write"
    assert pasted(lines) == {
        "kd_losses": {"fgd": {"weight": 1.235e-05, "temperature": 0.5}, "output": {"weight": {"box": 1.235}, "box": 2}}
    }


def test_a_teachers_share_is_taken_out_again() -> None:
    hyp = Hyp(kd_losses={"fgd": {"share": 1}}, kd_teachers=[{"share": 0.25}, {"share": 0.5}])
    options = TrainOptions(teacher_weights="a.pt", more_teachers=("b.pt",))
    lines = found_weights({"factor/kd1/fgd": 1.0, "factor/kd2/fgd": 3.0}, options, hyp)
    assert [line for line in lines if line != "kd_losses:"] == [
        "weights that the shares came to, under the teacher a.pt; to fix them, write",
        "  fgd: {weight: 4.0}",
        "weights that the shares came to, under the teacher b.pt; to fix them, write",
        "  fgd: {weight: 6.0}",
    ]


def test_nothing_is_said_without_shares_or_before_any_is_known() -> None:
    assert found_weights({}, ONE, Hyp(kd_losses={"fgd": {"weight": 1}})) == []
    assert found_weights({}, ONE, Hyp(kd_losses={"fgd": {"share": 1}})) == []
    assert found_weights({"factor/kd/fgd": 0.0}, ONE, Hyp(kd_losses={"fgd": {"share": 1}})) == []
