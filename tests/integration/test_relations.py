"""Several teachers, the student's own average, images without labels, and chains of assistants, in real trainings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.config.options import TrainOptions
from engine.training.loop import Trainer
from engine.training.train import run_training
from tests.integration.conftest import checked
from tests.integration.test_training import assert_same_weights, rows_of


@pytest.fixture
def options(tiny: Path, teacher: Path) -> TrainOptions:
    """A trained teacher and the student's average, with images without labels behind each batch."""
    return TrainOptions(
        cfg=str(tiny / "small.yaml"), data=str(tiny / "tiny.yaml"), hyp=str(tiny / "distill.yaml"), epochs=4,
        batch_size=8, img_size=(96, 96), workers=0, noplots=True, device="cpu", project=str(tiny / "runs"),
        name="relations-whole",
        teacher_weights=str(teacher), more_teachers=("ema",), unlabeled=str(tiny / "images/images/test"),
        unlabeled_batch=2,
    )  # fmt: skip


class Interrupted(Exception):
    """Stands for whatever ends a process."""


def test_a_resumed_run_equals_an_uninterrupted_one(
    tiny: Path, options: TrainOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_training(options, distil=True)
    whole = tiny / "runs" / "relations-whole"
    row = rows_of(whole)[-1]
    assert float(row["train/kd1/fgd/P3"]) > 0 and float(row["train/kd2/fgd/P3"]) > 0
    assert float(row["schedule/kd1"]) == float(row["schedule/kd2"]) == 1

    train_epoch = Trainer.train_epoch

    def broken(self: Trainer, epoch: int) -> dict[str, float]:
        if epoch == 2:
            raise Interrupted
        return train_epoch(self, epoch)

    monkeypatch.setattr(Trainer, "train_epoch", broken)
    with pytest.raises(Interrupted):
        run_training(replace(options, name="relations-cut"), distil=True)
    monkeypatch.undo()
    cut = tiny / "runs" / "relations-cut"
    run_training(options, resume=str(cut / "weights" / "last.pt"), distil=True)
    assert_same_weights(whole, cut)


def test_images_without_labels_change_the_student(tiny: Path, options: TrainOptions) -> None:
    short = replace(options, epochs=1, more_teachers=(), name="relations-free")
    run_training(short, distil=True)
    run_training(replace(short, unlabeled="", name="relations-labelled"), distil=True)
    with pytest.raises(AssertionError, match="tensors differ"):
        assert_same_weights(tiny / "runs" / "relations-free", tiny / "runs" / "relations-labelled")


@pytest.mark.slow
def test_a_chain_of_one_assistant(tiny: Path, base: list[str], teacher: Path) -> None:
    mark = tiny / "mark.pt"  # a baseline that nothing can be worse than
    torch.save(torch.load(teacher, weights_only=True) | {"metrics": {"metrics/AP": 0.0}}, mark)
    listed = tiny / "chain.yaml"
    listed.write_text(f"assistants:\n- {{cfg: {tiny}/large.yaml, baseline: {mark}}}\n")
    words = [*base, "--cfg", tiny / "small.yaml", "--epochs", 1, "--hyp", tiny / "distill.yaml", "--name", "chain"]
    words += ["--teacher-weights", teacher, "--teacher-assistants", listed]
    checked("train_distill.py", *words)
    stages = json.loads((tiny / "runs/chain/chain.json").read_text())["stages"]
    assert [(stage["stage"], stage["teacher"]) for stage in stages] == [
        ("1-large", str(teacher)),
        ("student", str(tiny / "runs/chain/1-large/weights/best.pt")),
    ]
    assert checked("train_distill.py", *words, "--exist-ok").stdout.count("already trained") == 2
