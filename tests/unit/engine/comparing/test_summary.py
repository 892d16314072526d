from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.comparing.arms import Arm, describe_arms, teacher_start
from engine.comparing.experiment import load_experiment
from engine.comparing.summary import headline, power_note, summarise
from engine.comparing.wording import answer, notes, point_range, points
from engine.runfolder import RunFolder
from tests.golden import ROOT

ARMS = {
    arm.name: arm
    for arm in (
        Arm("baseline", "scratch", False, 30, True),
        Arm("baseline-x4", "scratch", False, 120, False),
        Arm("inherited", "inherited", False, 30, True),
        Arm("both", "inherited", True, 30, True, "inherited"),
        Arm("recipe", "scratch", True, 30, True, "baseline"),
    )
}
AP = {
    "baseline": {0: 0.30, 1: 0.31, 2: 0.29},
    "baseline-x4": {0: 0.45, 1: 0.46, 2: 0.44},
    "inherited": {0: 0.39, 1: 0.40, 2: 0.38},
    "both": {0: 0.40, 1: 0.40, 2: 0.40},
    "recipe": {0: 0.31, 1: 0.33, 2: 0.27},
}


def rows(ap: dict[str, dict[int, float]], teacher: float | None = 0.5) -> list[dict[str, Any]]:
    values = [("teacher", 5, teacher)] if teacher is not None else []
    values += [(role, seed, value) for role, own in ap.items() for seed, value in own.items()]
    return [row(*each) for each in values]


def row(role: str, seed: int, ap: float, small: float = float("nan")) -> dict[str, Any]:
    size = 8_000_000 if role == "teacher" else 1_000_000
    return {
        "role": role, "seed": seed, "weights": "best.pt", "AP": ap, "AP50": 2 * ap, "AP75": ap, "AP_small": small,
        "AP_medium": ap, "AP_large": ap, "per_class": {"cell": ap, "none": float("nan")}, "parameters": size,
        "gflops": 1.5, "ms": 3.21,
    }  # fmt: skip


def entries(ap: dict[str, dict[int, float]], teacher: float | None = 0.5) -> dict[str, dict[str, Any]]:
    return {entry["role"]: entry for entry in summarise(rows(ap, teacher), ARMS)}


def test_differences_and_shares_of_the_gap() -> None:
    found = entries(AP)
    assert "difference" not in found["baseline"] and "difference" not in found["teacher"]
    both = found["both"]
    assert both["difference"]["mean"] == pytest.approx(0.10) and both["difference"]["better"] == 3
    # deviation of 0.10, 0.09, 0.11 is 0.01; t(0.975, 2) / sqrt(3) = 2.48414
    assert both["difference"]["interval"] == pytest.approx((0.10 - 0.0248414, 0.10 + 0.0248414))
    assert both["share"] == pytest.approx({"mean": 0.5, "least": 0.5, "most": 0.5})
    # against the mean baseline of 0.30: 0.01, 0.03, -0.03 of 0.20
    assert found["recipe"]["share"] == pytest.approx({"mean": 0.01 / 3 / 0.2, "least": -0.15, "most": 0.15})


def test_what_distillation_adds_over_inheritance() -> None:
    found = entries(AP)
    assert found["both"]["added"]["to"] == "inherited"
    assert found["both"]["added"]["differences"] == pytest.approx((0.01, 0.0, 0.02))
    assert "added" not in found["recipe"], "over the baseline it is the difference itself"


def test_a_missing_seed_leaves_both_arms_and_is_told() -> None:
    ap = {**AP, "both": {0: 0.40, 2: 0.40, 7: 0.9}}
    summary = summarise(rows(ap), ARMS)
    entry = next(each for each in summary if each["role"] == "both")
    assert entry["difference"]["seeds"] == (0, 2) and entry["difference"]["verdict"] == "too few seeds"
    assert entry["share"]["mean"] == pytest.approx((0.40 - 0.295) / (0.5 - 0.295))
    told = " ".join(notes(summary, ARMS, entry, ""))
    assert "both and baseline share only the seeds 0, 2: the others are left out of both" in told


def test_the_sentence_names_both_steps() -> None:
    summary = summarise(rows(AP), ARMS)
    text = answer(summary, ARMS, headline(summary))
    assert text == (
        "Inherited and distilled: +10.0 AP over the same student from scratch (95 % interval 7.5 to 12.5), 50 % of the "
        "gap; of this, distillation adds +1.0 (-1.5 to 3.5) over inheritance: no gain shown; better with 3 of 3 seeds."
    )


def test_the_sentence_claims_nothing_of_two_seeds() -> None:
    ap = {role: {seed: own[seed] for seed in (0, 1)} for role, own in AP.items()}
    summary = summarise(rows(ap), ARMS)
    text = answer(summary, ARMS, headline(summary))
    assert "interval" not in text and text.endswith("Too few seeds for a claim: three are the least.")


def test_the_sentence_tells_a_loss_and_what_is_not_shown() -> None:
    summary = summarise(rows({**AP, "both": {0: 0.2, 1: 0.21, 2: 0.2}}), ARMS)
    assert ": a loss;" in answer(summary, ARMS, headline(summary))
    assert ": no gain shown; better with 2 of 3" in answer(summary, ARMS, headline(summary, "recipe"))


def test_an_arm_of_another_length_is_marked_and_never_claimed() -> None:
    summary = summarise(rows({role: AP[role] for role in ("baseline", "baseline-x4")}), ARMS)
    entry = headline(summary)
    assert entry and entry["role"] == "baseline-x4"
    text = answer(summary, ARMS, entry)
    assert "interval" not in text
    assert text.endswith("No claim: it was trained for 120 epochs, the baseline for 30.")
    everything = summarise(rows(AP), ARMS)
    assert any("baseline-x4 was trained for 120 epochs" in n for n in notes(everything, ARMS, headline(everything), ""))


def test_the_arm_of_the_sentence_is_not_the_luckiest() -> None:
    arms = {**ARMS, "better": Arm("better", "inherited", True, 30, True, "inherited")}
    summary = summarise(rows({**AP, "better": {0: 0.6, 1: 0.6, 2: 0.6}}), arms)
    chosen = headline(summary)
    assert chosen and chosen["role"] == "both"
    assert answer(summary, arms, chosen).startswith("Inherited and distilled (both): ")
    other = headline(summary, "better")
    assert other and other["role"] == "better"


def test_notes() -> None:
    summary = summarise(rows(AP), ARMS)
    told = "\n".join(notes(summary, ARMS, headline(summary), "yolov5n.pt"))
    assert "The teacher has 8.0 times the parameters of the student." in told
    assert "The teacher began from given weights (yolov5n.pt). What inherits from it (inherited, both)" in told
    assert "not corrected for their number" in told
    # a deviation of 0.01 and a difference of 0.01: ten seeds have a chance of 0.8
    assert "With this spread of the differences (0.0100), ten seeds would show a difference of 0.01" in told
    assert power_note(summary[-2]["difference"])["seeds"] == 10


def test_a_teacher_that_is_no_better() -> None:
    summary = summarise(rows(AP, teacher=0.2), ARMS)
    assert all(entry.get("share") is None for entry in summary)
    assert "no gap to close" in " ".join(notes(summary, ARMS, headline(summary), ""))
    assert "of the gap" not in answer(summary, ARMS, headline(summary))


def test_numbers_in_points() -> None:
    assert (points(0.098), points(-0.0001), points(-0.02)) == ("+9.8", "+0.0", "-2.0")
    assert point_range((-0.0031, 0.015)) == "-0.3 to 1.5"


def test_arms_of_a_shipped_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = load_experiment("experiments/synthetic.yaml")
    arms = describe_arms(found, [])
    assert {name: (arm.kind, arm.counterpart, arm.equal_epochs) for name, arm in arms.items()} == {
        "baseline": ("", None, True),
        "baseline-x4": ("", None, False),
        "inherited-random": ("inherited", None, True),
        "inherited": ("inherited", None, True),
        "recipe": ("distilled", "baseline", True),
        "inherited-recipe": ("inherited and distilled", "inherited", True),
        "inherited-bckd": ("inherited and distilled", "inherited", True),
    }
    teacher = {"cfg": "cfg/yolov5/yolov5s.yaml"}  # in the place of weights that are not in the repository
    official = describe_arms(replace(load_experiment("experiments/bccd-official.yaml"), teacher=teacher), [])
    assert official["official-bckd"].counterpart == "official"


def test_what_a_training_came_to_is_read_from_its_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = load_experiment("experiments/demo.yaml")
    arms = {**found.arms, "distilled": {**found.arms["distilled"], "init": "auto"}}
    found = type(found)(**{**vars(found), "arms": arms, "teacher": {"weights": str(tmp_path / "t/weights/best.pt")}})
    weights = {name: str(tmp_path / name / "weights" / "best.pt") for name in ("distilled", "t")}
    made = [{"role": role, "weights": weights[name]} for role, name in (("teacher", "t"), ("distilled", "distilled"))]
    assert describe_arms(found, made)["distilled"].start == "scratch" and teacher_start(found, made) == ""
    RunFolder(tmp_path / "distilled").write_manifest({"init": {"from": "teacher"}})
    RunFolder(tmp_path / "t").write_manifest({"start": {"path": "yolov5n.pt", "sha256": "0"}})
    assert describe_arms(found, made)["distilled"].start == "inherited"
    assert teacher_start(found, made) == "yolov5n.pt"
