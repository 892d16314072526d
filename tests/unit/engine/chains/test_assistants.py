"""Chains of teacher assistants: what is trained under whom, and when a chain ends."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import engine.chains.assistants as assistants_module
from checkpoints.checkpoint import save_checkpoint
from engine.chains.assistants import Assistant, parse_assistants, run_chain
from engine.config.options import TrainOptions
from engine.runfolder import RunFolder
from engine.training.state import model_entry
from models.yolo import Model
from utils.errors import UsageError, UserError

PICO = "cfg/yolov5/yolov5p.yaml"


class Trainings:
    """Stands in for run_training: notes what it is asked for and writes a best.pt of the AP that is due next."""

    def __init__(self, aps: list[float]) -> None:
        self.aps = list(aps)
        self.calls: list[tuple[TrainOptions, Any, bool]] = []
        self.entry = model_entry(Model(PICO, nc=1))

    def __call__(self, options: TrainOptions, resume: Any = False, distil: bool = False, given: Any = ()) -> None:
        self.calls.append((options, resume, distil))
        weights = Path(options.project) / options.name / "weights"
        weights.mkdir(parents=True, exist_ok=True)
        payload = {"model": self.entry, "epoch": 0, "metrics": {"metrics/AP": self.aps.pop(0)}}
        for name in ("best.pt", "last.pt"):
            save_checkpoint(weights / name, payload)
        RunFolder(weights.parent).update_manifest({"finished": {"epochs": 1}})


@pytest.fixture
def options(tmp_path: Path) -> TrainOptions:
    torch.save({}, tmp_path / "teacher.pt")
    return TrainOptions(
        cfg=PICO, hyp="hyp/distill.l2.yaml", teacher_weights=str(tmp_path / "teacher.pt"), epochs=7,
        project=str(tmp_path / "runs"), name="chain",
    )  # fmt: skip


def trained(monkeypatch: pytest.MonkeyPatch, aps: list[float]) -> Trainings:
    trainings = Trainings(aps)
    monkeypatch.setattr(assistants_module, "run_training", trainings)
    return trainings


def test_each_stage_is_taught_by_the_one_before(monkeypatch: pytest.MonkeyPatch, options: TrainOptions) -> None:
    trainings = trained(monkeypatch, [0.4, 0.45, 0.3, 0.31, 0.2])
    chain = [Assistant("cfg/yolov5/yolov5s.yaml"), Assistant("cfg/yolov5/yolov5n.yaml", epochs=3)]
    folder = run_chain(options, chain)
    assert folder == Path(options.project) / "chain"
    told = [(o.name, o.cfg, Path(o.teacher_weights).parts[-3:], o.epochs, distil) for o, _, distil in trainings.calls]
    assert [t[0] for t in told] == ["1-yolov5s-baseline", "1-yolov5s", "2-yolov5n-baseline", "2-yolov5n", "student"]
    assert [t[1] for t in told] == [chain[0].cfg, chain[0].cfg, chain[1].cfg, chain[1].cfg, PICO]
    assert told[1][2][-1] == "teacher.pt"
    assert told[3][2] == ("1-yolov5s", "weights", "best.pt")
    assert told[4][2] == ("2-yolov5n", "weights", "best.pt")
    assert [t[3] for t in told] == [7, 7, 3, 3, 7]
    assert [t[4] for t in told] == [False, True, False, True, True]
    stages = json.loads((folder / "chain.json").read_text())["stages"]
    assert [stage["AP"] for stage in stages] == [0.45, 0.31, 0.2]
    assert [stage.get("baseline AP") for stage in stages] == [0.4, 0.3, None]


def test_an_assistant_worse_than_alone_ends_the_chain(monkeypatch: pytest.MonkeyPatch, options: TrainOptions) -> None:
    trainings = trained(monkeypatch, [0.4, 0.39])
    with pytest.raises(UserError, match=r"stage 1 \(1-yolov5s\) is worse than its own baseline: AP 0.3900.* 0.4000"):
        run_chain(options, [Assistant("cfg/yolov5/yolov5s.yaml")])
    assert len(trainings.calls) == 2


def test_a_given_baseline_is_not_trained(monkeypatch: pytest.MonkeyPatch, options: TrainOptions) -> None:
    trainings = trained(monkeypatch, [0.41, 0.2])
    mark = Path(options.project) / "alone.pt"
    mark.parent.mkdir()
    save_checkpoint(mark, {"model": trainings.entry, "metrics": {"metrics/AP": 0.4}})
    run_chain(options, [Assistant("cfg/yolov5/yolov5s.yaml", baseline=str(mark))])
    assert [call[0].name for call in trainings.calls] == ["1-yolov5s", "student"]


def test_finished_stages_are_kept(monkeypatch: pytest.MonkeyPatch, options: TrainOptions) -> None:
    chain = [Assistant("cfg/yolov5/yolov5s.yaml")]
    trained(monkeypatch, [0.4, 0.45, 0.2])
    folder = run_chain(options, chain)
    (folder / "student/weights/best.pt").unlink()
    again = trained(monkeypatch, [0.25])
    run_chain(replace(options, exist_ok=True), chain)
    assert [call[0].name for call in again.calls] == ["student"]
    with pytest.raises(UserError, match="holds a chain with other settings"):
        run_chain(replace(options, exist_ok=True, epochs=9), chain)


def test_mistakes_show_before_the_first_training(monkeypatch: pytest.MonkeyPatch, options: TrainOptions) -> None:
    trainings = trained(monkeypatch, [])
    with pytest.raises(UserError, match="has no kd_losses"):
        run_chain(replace(options, hyp="hyp/scratch-low.yaml"), [Assistant(PICO)])
    with pytest.raises(UsageError, match="--teacher-weights is missing"):
        run_chain(replace(options, teacher_weights=""), [Assistant(PICO)])
    assert not trainings.calls


def test_specs(tmp_path: Path) -> None:
    weights = tmp_path / "s.pt"
    torch.save({}, weights)
    assert parse_assistants([PICO, f"{PICO}:{weights}", str(weights)]) == [
        Assistant(PICO), Assistant(PICO, str(weights)), Assistant(weights=str(weights)),
    ]  # fmt: skip
    listed = tmp_path / "chain.yaml"
    listed.write_text(f"assistants:\n- {{cfg: {PICO}, epochs: 5}}\n- {{weights: {weights}}}\n")
    assert parse_assistants([str(listed)]) == [Assistant(PICO, epochs=5), Assistant(weights=str(weights))]
    assert parse_assistants([PICO])[0].name == "yolov5p"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("assistants: []", "must be a list such as"),
        ("assistants: [{cgf: x.yaml}]", "unknown key 'cgf'; did you mean 'cfg'"),
        ("assistants: [{epochs: 5}]", "needs cfg .* or weights"),
        ("assistants: [{cfg: nowhere.yaml}]", "teacher assistant's cfg 'nowhere.yaml' does not exist"),
        ("assistants: [{cfg: x.yaml, epochs: ten}]", "epochs is 'ten'; expected a number"),
    ],
)
def test_wrong_lists(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "chain.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        parse_assistants([str(path)])


def test_wrong_specs() -> None:
    with pytest.raises(UsageError, match="'yolov5s': expected cfg.yaml, cfg.yaml:weights.pt or weights.pt"):
        parse_assistants(["yolov5s"])
    with pytest.raises(UserError, match="weights 'none.pt' does not exist"):
        parse_assistants([f"{PICO}:none.pt"])
