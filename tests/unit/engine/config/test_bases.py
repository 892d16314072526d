"""Files over their bases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.config.bases import load_hyp, merge
from engine.config.hyp import read_hyp
from utils.errors import UserError

BASE = """
lr0: 0.02
student_kd_layers: [1, 2, 3]
kd_losses:
  fgd: {weight: 1.0, temperature: 0.5}
  bckd: {share: {box: 0.2, obj: 0.1}, box: 4}
kd_schedule: {shape: cosine, warmup_epochs: 3, stop_epoch: 20}
"""
BCKD = {"share": {"box": 0.2, "obj": 0.1}, "box": 4}


def over_base(folder: Path, text: str, base: str = BASE) -> Path:
    (folder / "base.yaml").write_text(base)
    path = folder / "top.yaml"
    path.write_text(f"base: base.yaml\n{text}\n")
    return path


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("lr0: 0.5", {"lr0": 0.5}),
        ("student_kd_layers: [4]", {"student_kd_layers": [4]}),  # lists are replaced
        ("kd_schedule: {stop_epoch: null}", {"kd_schedule": {"shape": "cosine", "warmup_epochs": 3}}),
        ("kd_schedule: null", {"kd_schedule": None}),
        ("kd_losses: {fgd: {temperature: 2}}",
         {"kd_losses": {"fgd": {"weight": 1.0, "temperature": 2}, "bckd": BCKD}}),
        ("kd_losses: {fgd: null}", {"kd_losses": {"bckd": BCKD}}),
        ("kd_losses:\n  bckd: ~", {"kd_losses": {"fgd": {"weight": 1.0, "temperature": 0.5}}}),
        ("kd_losses: {fgd: {share: 0.4}, bckd: null}", {"kd_losses": {"fgd": {"temperature": 0.5, "share": 0.4}}}),
        ("kd_losses: {fgd: null, bckd: {weight: 0.3}}", {"kd_losses": {"bckd": {"box": 4, "weight": 0.3}}}),
        ("kd_losses: {fgd: null, bckd: {share: {box: 1}}}",
         {"kd_losses": {"bckd": {"share": {"box": 1, "obj": 0.1}, "box": 4}}}),
        ("kd_losses: {fgd: null, bckd: {share: null}}", {"kd_losses": {"bckd": {"box": 4}}}),
        # both in one entry are left to the distiller, which refuses them
        ("kd_losses: {bckd: null, fgd: {share: 1, weight: 2}}",
         {"kd_losses": {"fgd": {"temperature": 0.5, "share": 1, "weight": 2}}}),
        ("kd_losses: {}", {}),
        ("kd_losses: null", {"kd_losses": None}),
    ],
)  # fmt: skip
def test_mappings_are_merged_key_by_key(tmp_path: Path, text: str, changed: dict[str, Any]) -> None:
    path = over_base(tmp_path, text)
    assert load_hyp(path).values == {**load_hyp(tmp_path / "base.yaml").values, **changed}


def test_what_was_taken_out_below_can_come_back_above(tmp_path: Path) -> None:
    path = over_base(tmp_path, "kd_losses: {fgd: null, bckd: null}")
    (tmp_path / "more.yaml").write_text("base: top.yaml\nkd_losses: {fgd: {}}\n")
    assert load_hyp(tmp_path / "more.yaml").values["kd_losses"] == {"fgd": {}}
    assert read_hyp(path).distills is False


def test_merging_changes_neither_side() -> None:
    base, over = {"kd_losses": {"fgd": {"weight": 1}}}, {"kd_losses": {"fgd": {"share": 2}}}
    assert merge(base, over) == {"kd_losses": {"fgd": {"share": 2}}}
    assert (base, over) == ({"kd_losses": {"fgd": {"weight": 1}}}, {"kd_losses": {"fgd": {"share": 2}}})


@pytest.mark.parametrize(
    ("text", "losses"),
    [
        ("lr0: 0.1", "fgd, bckd"),
        ("kd_losses: {cwd: {}}", "fgd, bckd"),
        ("kd_losses: {cwd: {}, fgd: {weight: 2}}", "bckd"),
        ("kd_losses: {cwd: {}, fgd: null, bckd: null}", ""),
    ],
)
def test_losses_of_a_base_are_told(tmp_path: Path, text: str, losses: str) -> None:
    notes = load_hyp(over_base(tmp_path, text)).notes
    assert list(notes) == ([f"kd_losses from base '{tmp_path / 'base.yaml'}': {losses}"] if losses else [])


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ("fgd:", "line 4, column 3: `fgd:` has no value; write `fgd: {}` for its defaults, or null"),
        ("fgd: {weight: }", "`weight:` has no value; write its value, or null"),
        ("cwd: null", "'{top}': kd_losses: cwd is null, and no base has it; write `cwd: {}` for its defaults"),
    ],
)
def test_a_loss_without_settings_is_refused(tmp_path: Path, losses: str, message: str) -> None:
    path = over_base(tmp_path, f"lr0: 0.1\nkd_losses:\n  {losses}\n")
    with pytest.raises(UserError) as error:
        read_hyp(path)
    assert message.replace("{top}", str(path)) in str(error.value) and "\n" not in str(error.value)


def test_other_keys_may_be_empty(tmp_path: Path) -> None:
    path = tmp_path / "hyp.yaml"
    path.write_text("kd_losses:\n  fgd: {}\nkd_schedule:\n  stop_epoch:\nanchors:\n")
    assert read_hyp(path).kd_schedule == {"stop_epoch": None}


def test_keys_of_the_forks_over_a_base(tmp_path: Path) -> None:
    fork = "feature_loss_type: cwd\nfeature_loss_ratio: 2.0\nkd_loss_decay: linear"
    hyp = read_hyp(over_base(tmp_path, f"{fork}\nkd_losses: null", "kd_schedule: {shape: cosine, end: 0.2}"))
    assert hyp.kd_losses == {"cwd": {"weight": 2.0}}
    assert hyp.kd_schedule == {"shape": "linear", "end": 0.2}, "the file's decay replaces the base's shape"
    parted = over_base(tmp_path, "feature_loss_type: cwd", "kd_loss_type: feature\nkd_loss_decay: linear")
    assert read_hyp(parted).kd_losses == {"cwd": {"weight": 1.0}}


def test_a_base_of_earlier_versions_is_answered(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: distillation.v8.yaml\n")
    with pytest.raises(UserError, match=r"does not exist in .*; base: distillation\.yaml serves every family now"):
        read_hyp(path)
