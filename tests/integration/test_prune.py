"""prune.py from a trained checkpoint to a report, and every other command on what it leaves."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from checkpoints.checkpoint import load_checkpoint, load_model
from prune import main as prune_main
from tests.integration.conftest import checked, run_command

SMALL = ["--round-to", 4, "--min-keep", 0.1, "--calibration-batches", 2, "--val-period", 1]


@pytest.fixture(scope="session")
def pruned(tiny: Path, base: list[str], teacher: Path) -> Path:
    """The folder of `prune.py all`."""
    words = ["all", *base, *SMALL, "--weights", teacher, "--target", 0.3, "--epochs", 1, "--name", "pruned"]
    done = checked("prune.py", *words)
    assert "pruned 3" in done.stdout + done.stderr
    return tiny / "runs" / "pruned"


def test_all_stages_leave_one_folder(pruned: Path, teacher: Path) -> None:
    report = json.loads((pruned / "report.json").read_text())
    rows = {row["role"]: row for row in report["rows"]}
    assert list(rows) == ["full", "pruned", "finetuned", "distilled"]
    assert rows["full"]["weights"] == str(teacher)
    for role in ("pruned", "finetuned", "distilled"):
        assert rows[role]["parameters"] < rows["full"]["parameters"]
        assert rows[role]["gflops"] < 0.75 * rows["full"]["gflops"]
        assert rows[role]["bytes"] < rows["full"]["bytes"] and rows[role]["ms_batch16"] > 0
    assert report["cuts"][0]["share"] >= 0.3
    text = (pruned / "report.md").read_text()
    assert "| model.0.conv | 3 |" in text and "BatchNorm's statistics" in text
    html = (pruned / "report.html").read_text(encoding="utf-8")
    assert "<h2>Learning curves</h2>" in html and "finetuned (0.3)" in html and "Distilled (0.3): " in html
    assert load_checkpoint(pruned / "weights" / "best.pt").yaml == load_checkpoint(rows["distilled"]["weights"]).yaml
    teacher_of = load_checkpoint(rows["distilled"]["weights"]).extra["teacher"]
    assert teacher_of["path"] == str(teacher)


@pytest.mark.slow
def test_the_same_command_again_trains_nothing_again(pruned: Path, base: list[str], teacher: Path) -> None:
    words = ["all", *base, *SMALL, "--weights", teacher, "--epochs", 1, "--name", "pruned", "--exist-ok"]
    before = (pruned / "distilled" / "weights" / "best.pt").stat().st_mtime_ns
    output = checked("prune.py", *words, "--target", 0.3).stdout
    assert output.count("already") == 3
    assert (pruned / "distilled" / "weights" / "best.pt").stat().st_mtime_ns == before
    for changed in (("--target", 0.4), ("--target", 0.3, "--calibration-batches", 3)):
        failed = run_command("prune.py", *words, *changed)
        assert failed.returncode == 1 and "pruned in another way" in failed.stderr
    hyp = pruned / "other.yaml"
    hyp.write_text("lr0: 0.003")
    failed = run_command("prune.py", *words, "--target", 0.3, "--hyp", hyp)
    assert failed.returncode == 1 and "its hyper-parameters are others: lr0 was" in failed.stderr


def test_the_pruned_file_works_in_every_command(pruned: Path, tiny: Path, base: list[str], teacher: Path) -> None:
    weights = pruned / "pruned" / "pruned.pt"
    plan = load_checkpoint(weights).yaml["channel_plan"]
    runs = tiny / "runs"
    checked("train.py", *base, "--weights", weights, "--hyp", tiny / "hyp.yaml", "--epochs", 1, "--name", "p-train")
    trained = runs / "p-train" / "weights" / "best.pt"
    assert load_checkpoint(trained).yaml["channel_plan"] == plan
    words = ["--hyp", tiny / "distill.yaml", "--epochs", 1, "--name", "p-teacher"]
    checked("train_distill.py", *base, "--weights", teacher, "--teacher-weights", trained, *words)
    data = ["--data", tiny / "tiny.yaml", "--img", 96, "--workers", 0, "--noplots", "--device", "cpu"]
    assert "COCO: AP" in checked("test.py", *data, "--weights", trained, "--project", runs, "--name", "p-test").stdout
    images = tiny / "images" / "images" / "val"
    checked("detect.py", "--weights", trained, "--source", images, "--img", 96, "--project", runs, "--name", "p-detect")
    assert list((runs / "p-detect").iterdir())


@pytest.mark.slow
def test_a_pruned_file_is_exported(pruned: Path) -> None:
    weights = pruned / "weights" / "best.pt"
    checked("export.py", "--weights", weights, "--include", "torchscript", "--img", 96)
    exported = torch.jit.load(str(weights.with_suffix(".torchscript")))
    image = torch.rand(1, 3, 96, 96)
    found = exported(image)
    found = found[0] if isinstance(found, tuple | list) else found
    torch.testing.assert_close(found, load_model(weights)(image)[0], rtol=1e-3, atol=1e-3)
    failed = run_command("prune.py", "prune", "--weights", weights.with_suffix(".torchscript"))
    assert failed.returncode == 1 and "is an exported model" in failed.stderr


@pytest.mark.slow
def test_an_interrupted_training_of_a_pruned_model_is_resumed(pruned: Path, tiny: Path, base: list[str]) -> None:
    weights = pruned / "pruned" / "pruned.pt"
    words = ["train.py", *base, "--weights", weights, "--hyp", tiny / "hyp.yaml", "--epochs", 2, "--name", "p-resume"]
    stop = "import runpy, sys; from engine.training import loop; " + (
        "loop.Trainer._report = lambda *_: sys.exit(0); sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    run_command("-c", stop, *words)
    last = tiny / "runs" / "p-resume" / "weights" / "last.pt"
    assert load_checkpoint(last).training
    checked("train.py", "--resume", last)
    finished = load_checkpoint(last)
    assert not finished.training and finished.epoch == 1 and finished.yaml["channel_plan"]


@pytest.mark.slow
def test_sparse_training_then_one_stage_after_the_other(tiny: Path, base: list[str], teacher: Path) -> None:
    shared = [*base, *SMALL, "--epochs", 1]
    runs = tiny / "runs"
    sparse = ["--weights", teacher, "--sparsity", 0.01, "--name", "s1"]
    done = checked("prune.py", "sparse", *(word for word in shared if word != "--noplots"), *sparse)
    assert "below 0.01" in done.stdout and (runs / "s1" / "sparse" / "scales.png").is_file()
    assert "sparsity/l1" in (runs / "s1" / "sparse" / "results.csv").read_text()
    best = runs / "s1" / "sparse" / "weights" / "best.pt"
    cut = ["--weights", best, "--importance", "bn", "--target", 0.2, 0.3, "--name", "s2"]
    checked("prune.py", "prune", *shared, *cut)
    assert len(json.loads((runs / "s2" / "report.json").read_text())["rows"]) == 3
    small = runs / "s2" / "0.3-pruned" / "pruned.pt"
    checked("prune.py", "distill", *shared, "--weights", small, "--name", "s3")
    student = load_checkpoint(runs / "s3" / "distilled" / "weights" / "best.pt")
    assert student.extra["teacher"]["path"] == str(best) and student.yaml["channel_plan"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["all"], "--weights is missing"),
        (["prune", "--weights", "model.onnx"], "is an exported model"),
        (["prune", "--weights", "nothing.pt"], "does not exist"),
        (["all", "--weights", "x.pt", "--target", "1.2"], "target is 1.2"),
        (["all", "--weights", "x.pt", "--cfg", "y.yaml"], "--cfg has no use here"),
        (["cut"], "invalid choice: 'cut'"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["prune.py", *words])
    with pytest.raises(Exception) as caught:
        prune_main()
    assert caught.value.exit_code in (1, 2) and message in str(caught.value)  # type: ignore[attr-defined]
    assert "\n" not in str(caught.value)


def test_a_mistake_that_the_model_shows_is_one_line(base: list[str], teacher: Path) -> None:
    words = ["prune", *base, *SMALL, "--weights", teacher, "--name", "bad", "--protect", "C33"]
    failed = run_command("prune.py", *words)
    assert failed.returncode == 1 and "did you mean 'C3'" in failed.stderr
    assert failed.stderr.strip().splitlines()[-1].startswith("error: ")
