from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import engine.comparing.side_by_side as side_by_side
from engine.comparing.experiment import Experiment
from engine.comparing.progress import Planned, Progress, State, seconds_left
from engine.comparing.side_by_side import threads_each, train_side_by_side
from engine.comparing.trainings import Step, Training, prepare
from engine.runfolder import ResultsTable
from tests.unit.engine.comparing.test_experiment import experiment
from utils.errors import UserError


def trained(run: Path, epochs: int, seconds: float, done: bool = False) -> None:
    run.mkdir(parents=True)
    table = ResultsTable(run / "results.csv")
    for epoch in range(epochs):
        table.add({"epoch": epoch, "time/epoch": seconds})
    if done:
        (run / "done.json").write_text("{}")


def test_progress_over_the_whole_experiment(tmp_path: Path) -> None:
    planned = [Planned("teacher", "teacher", 10), *(Planned(f"{a}-seed{s}", a, 20) for a in "ab" for s in (0, 1))]
    progress = Progress(planned, jobs=2)
    assert progress.line(tmp_path) == "0 of 5 trainings done, 0 % of the epochs"
    trained(tmp_path / "teacher", 10, 9.0, done=True)
    trained(tmp_path / "a-seed0", 5, 2.0)
    # 15 + 20 + 40 epochs of 2 seconds, two at a time; 15 of 90 epochs are done
    assert progress.line(tmp_path) == "1 of 5 trainings done, 16 % of the epochs, about 75 s left"
    trained(tmp_path / "b-seed0", 15, 4.0, done=True)
    # it stopped early; 15 + 20 epochs of 2 seconds and 20 of 4
    assert progress.line(tmp_path) == "2 of 5 trainings done, 38 % of the epochs, about 80 s left"


def test_the_longest_training_sets_a_limit() -> None:
    states = [State("a", 0, 100, 1.0), State("b", 0, 1, 1.0)]
    assert seconds_left(states, jobs=8) == 100
    assert seconds_left([State("a", 0, 100, None)], jobs=1) is None


def test_threads_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(side_by_side, "usable_cpus", lambda: 8)
    assert (threads_each(3, None), threads_each(100, None), threads_each(3, 5)) == (2, 1, 5)
    assert threads_each(1, None) is None and threads_each(1, 4) == 4
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_each(2, None) is None, "the environment says it for every process"


class Children:
    """Real processes in the place of trainings: each notes when it runs and with how many threads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, bad: str = "") -> None:
        self.folder, self.bad = folder, bad
        monkeypatch.setattr(side_by_side, "prepare", self.prepare)

    def prepare(self, tried: Experiment, folder: Path, training: Training, threads: int | None) -> Step:
        run = folder / training.name
        if (run / "done.json").is_file():
            return Step(run, [], {})
        run.mkdir(parents=True, exist_ok=True)
        wait = 60 if self.bad and training.name != self.bad else 0.4
        code = (
            "import os, pathlib, sys, time; run = pathlib.Path(sys.argv[1]);"
            "(run / 'pid').write_text(str(os.getpid()));"
            f"(run / 'running').touch(); time.sleep({wait}); (run / 'running').unlink();"
            "print(len(list(run.parent.glob('*/running'))), os.environ['OMP_NUM_THREADS']);"
            f"sys.exit({int(training.name == self.bad)})"
        )
        return Step(run, [sys.executable, "-c", code, str(run)], {}, {"OMP_NUM_THREADS": str(threads)})


def test_trainings_run_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Children(monkeypatch, tmp_path)
    trainings = [Training(name, ()) for name in "abcd"]
    (tmp_path / "b").mkdir()
    (tmp_path / "b/done.json").write_text("{}")
    train_side_by_side(experiment(tmp_path), tmp_path, trainings, 2, 3, Progress([], 2))
    logs = [(tmp_path / name / "train.log").read_text().split() for name in "acd"]
    assert all((tmp_path / name / "done.json").is_file() for name in "acd")
    assert {threads for _, threads in logs} == {"3"}
    assert max(int(others) for others, _ in logs) == 1, "two at a time, no more"
    assert not (tmp_path / "b/train.log").exists(), "what is finished is not repeated"


def test_a_failure_ends_the_others_and_names_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Children(monkeypatch, tmp_path, bad="a")
    with pytest.raises(UserError, match=r"training of a failed; its messages are in .*a/train.log"):
        train_side_by_side(experiment(tmp_path), tmp_path, [Training(n, ()) for n in "ab"], 2, 1, Progress([], 2))
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "b/pid").read_text()), 0)
    assert not (tmp_path / "a/done.json").exists() and not (tmp_path / "b/done.json").exists()


def test_children_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    child = (
        "import os, pathlib, sys, time; from utils.running.processes import end_with_parent; end_with_parent();"
        "pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(60)"
    )
    parent = (
        "import sys, time; from utils.running.processes import start_child;"
        f"children = [start_child([sys.executable, '-c', {child!r}, name]) for name in sys.argv[1:]]; time.sleep(60)"
    )
    notes = [tmp_path / "one", tmp_path / "two"]
    root = str(Path(__file__).parents[4])
    process = subprocess.Popen([sys.executable, "-c", parent, *map(str, notes)], cwd=root)
    until = time.monotonic() + 30
    while time.monotonic() < until and not all(note.is_file() and note.read_text() for note in notes):
        time.sleep(0.05)
    process.kill()
    process.wait()
    numbers = [int(note.read_text()) for note in notes]
    while time.monotonic() < until and any(map(alive, numbers)):
        time.sleep(0.05)
    assert not any(map(alive, numbers))


def alive(number: int) -> bool:
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_resumed_training_keeps_its_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried, training = experiment(tmp_path), Training("arm", ("train.py", "--epochs", "3"))
    first = prepare(tried, tmp_path, training, 3)
    assert first.environment == {"OMP_NUM_THREADS": "3"} and "--exist-ok" in first.command
    monkeypatch.setattr("engine.comparing.trainings.run_state", lambda folder: "interrupted")
    again = prepare(tried, tmp_path, training, 7)
    assert again.environment == {"OMP_NUM_THREADS": "3"} and "--resume" in again.command
    monkeypatch.setattr("engine.comparing.trainings.run_state", lambda folder: "empty")
    assert prepare(tried, tmp_path, training, 7).environment == {"OMP_NUM_THREADS": "7"}
