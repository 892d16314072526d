"""Recipes written for the public forks."""

from __future__ import annotations

from typing import Any

import pytest

from engine.config.hyp import hyp_from_dict
from engine.config.vocabulary import parse_layers, translate
from utils.errors import UserError


def test_a_forks_recipe_becomes_ours() -> None:
    fork = {
        "lr0": 0.01,
        "student_kd_layers": "12,15,18",
        "teacher_kd_layers": " 12, 15,18 ",
        "kd_loss_type": "all",
        "kd_loss_decay": "cosine_epoch",
        "kd_loss_epoch": 0.8,
        "feature_loss_type": "mimic",
        "feature_loss_ratio": 0.5,
        "logical_loss_type": "l2",
        "logical_loss_ratio": 2.0,
    }
    hyp = hyp_from_dict(fork, "fork.yaml")
    assert hyp.kd_losses == {"l2": {"weight": 0.5}, "output": {"weight": 2.0}}
    assert hyp.kd_schedule == {"shape": "cosine", "stop_epoch": 0.8}
    assert hyp.student_kd_layers == hyp.teacher_kd_layers == [12, 15, 18]


@pytest.mark.parametrize(
    ("kind", "expected"), [("feature", ["cwd"]), ("logical", ["soft_label"]), ("all", ["cwd", "soft_label"])]
)
def test_the_type_chooses_among_the_named_losses(kind: str, expected: list[str]) -> None:
    fork = {"kd_loss_type": kind, "feature_loss_type": "cwd", "logical_loss_type": "AlignSoftTarget"}
    assert list(translate(fork, "x")["kd_losses"]) == expected


def test_without_a_type_every_named_loss_counts() -> None:
    assert translate({"logical_loss_type": "BCKD"}, "x")["kd_losses"] == {"bckd": {"weight": 1.0}}


def test_a_whole_training_has_no_end() -> None:
    fork = {"feature_loss_type": "mgd", "kd_loss_epoch": 1.0}
    assert translate(fork, "x")["kd_schedule"] == {}


def test_our_own_files_stay_as_they_are() -> None:
    ours: dict[str, Any] = {"student_kd_layers": "auto", "kd_losses": {"cwd": None}, "kd_schedule": {"end": 0.5}}
    assert translate(ours, "x") == ours


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"feature_loss_type": "chsim"}, "h.yaml: unknown feature_loss_type 'chsim'.*known: mimic, mgd, cwd"),
        ({"kd_loss_type": "both"}, "unknown kd_loss_type 'both'.*feature, logical, all"),
        ({"kd_loss_type": "logical", "feature_loss_type": "mgd"}, "logical_loss_type is missing"),
        ({"kd_loss_decay": "cosine"}, "name no loss; add kd_losses"),
        ({"feature_loss_type": "mgd", "kd_loss_epoch": "all"}, "kd_loss_epoch is 'all'"),
        ({"feature_loss_type": "mgd", "kd_losses": {"cwd": {}}}, "beside kd_losses"),
        ({"teacher_weights": "t.pt"}, "--teacher-weights"),
        ({"teacher_cfg": "t.yaml"}, "brings its own architecture"),
        ({"prune_model": True}, "brings its own channels"),
        ({"student_kd_layers": "0-1"}, "student_kd_layers has '0-1'; every layer has one output here, so write 0 "),
        ({"student_kd_layers": "P3"}, r"student_kd_layers has 'P3'; write indices such as \[12, 15, 18\]"),
    ],
)
def test_what_has_no_counterpart_is_answered(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        translate(values, "h.yaml")


def test_one_layer() -> None:
    assert parse_layers("7", "student_kd_layers", "x") == [7]
