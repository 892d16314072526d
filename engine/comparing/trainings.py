"""One training of an experiment: what its folder says of it, its command, and how it ended."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.comparing.experiment import Experiment
from engine.runfolder import RunFolder
from engine.training.stages import tell_of_changed_data
from engine.training.state import run_state
from utils.errors import UserError
from utils.logging import LOGGER
from utils.paths import REPOSITORY, file_hash, read_record, replacing
from utils.running.processes import run_child

THREADS = "OMP_NUM_THREADS"
"""What tells a process how many threads it has."""


@dataclass(frozen=True)
class Training:
    """A training by its name, that of its folder, and the words of its command line."""

    name: str
    words: tuple[str, ...]

    def best(self, folder: Path) -> Path:
        """The checkpoint that it ends with, below the experiment's folder."""
        return folder / self.name / "weights" / "best.pt"


@dataclass(frozen=True)
class Step:
    """What is to be done for a training.

    Attributes:
        run: its folder.
        command: of the process; empty where nothing is left to be done.
        identity: of the training, for the note of its end.
        environment: of the process, beside this one's.
    """

    run: Path
    command: list[str]
    identity: dict[str, Any]
    environment: dict[str, str] = field(default_factory=dict)


def train_one(experiment: Experiment, folder: Path, training: Training, threads: int | None = None) -> Path:
    """Trains one model unless its finished run folder is there already; an interrupted one is resumed.

    The training ends with this process, even where this one is killed.

    Returns:
        Path of its best.pt.
    """
    step = prepare(experiment, folder, training, threads)
    if step.command:
        check_ending(training.name, run_child(step.command, step.environment))
        note_end(step)
    return training.best(folder)


def prepare(experiment: Experiment, folder: Path, training: Training, threads: int | None) -> Step:
    """Looks at what is there of a training, notes that it starts, and says in one line what is done.

    One that is resumed has as many threads as it began with: on a CPU another number sums in another order, and the
    weights would differ in their last digits.

    Raises:
        UserError: the folder holds a model that was trained in another way.
    """
    run, best = folder / training.name, training.best(folder)
    words = [*training.words, "--data", experiment.data, "--workers", str(experiment.workers), *experiment.flags]
    if experiment.device:
        words += ["--device", experiment.device]
    identity: dict[str, Any] = {
        "command": words,
        "inputs": {w: file_hash(w) for w in words if w.endswith((".yaml", ".pt")) and Path(w).is_file()},
        "threads": threads,
    }
    done, started = run / "done.json", run / "started.json"
    last = run / "weights" / "last.pt"
    if done.is_file() and best.is_file():
        if not same_training(read_record(done), identity):
            raise UserError(f"{run} holds a model trained in another way; remove that folder, or use another --name")
        tell_of_changed_data(RunFolder(run, active=False), experiment.data)
        LOGGER.info(f"already trained: {best}")
        return Step(run, [], identity)
    before = read_record(started) if started.is_file() else {}
    state = run_state(run) if before and same_training(before, identity) else "empty"
    if state == "finished" and best.is_file():  # killed between its end and the note of it
        LOGGER.info(f"already trained: {best}")
        step = Step(run, [], {**identity, "threads": before.get("threads")})
        note_end(step)
        return step
    if state in ("interrupted", "evaluating"):
        identity["threads"] = before.get("threads")
        command = [words[0], "--resume", str(last)]
    else:
        command = [*words, "--project", str(folder), "--name", training.name, "--exist-ok"]
        for path in (last, best):  # of another training, which must not be taken for this one later
            path.unlink(missing_ok=True)
    run.mkdir(parents=True, exist_ok=True)
    with replacing(started) as stream:
        json.dump(identity, stream, indent=2)
    count = identity["threads"]
    LOGGER.info("$ " + (f"{THREADS}={count} " if count else "") + shlex.join(["python", *command]))
    environment = {THREADS: str(count)} if count else {}
    return Step(run, [sys.executable, str(REPOSITORY / command[0]), *command[1:]], identity, environment)


def note_end(step: Step) -> None:
    """Notes that a training has ended well."""
    with replacing(step.run / "done.json") as stream:
        json.dump(step.identity, stream, indent=2)


def check_ending(name: str, code: int, messages: str = "above") -> None:
    """Raises the UserError of a training that did not end well; `messages` says where its own are."""
    if code == -getattr(signal, "SIGKILL", 9):
        raise UserError(
            f"the training of {name} was killed, most likely because the memory is full; the same command goes on from "
            "its last epoch, with smaller `workers:` or `batch_size:` if it happens again"
        )
    if code:
        raise UserError(
            f"the training of {name} failed; its messages are {messages}. The same command goes on from there"
        )


def same_training(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two identities are of the same training, wherever and by however many workers it is done."""
    commands = [_essential(each.get("command") or ()) for each in (one, other)]
    return one.get("inputs") == other.get("inputs") and commands[0] == commands[1]


def _essential(words: Sequence[str]) -> list[str]:
    places = {i + offset for i, word in enumerate(words) if word in ("--workers", "--device") for offset in (0, 1)}
    return [word for i, word in enumerate(words) if i not in places]
