"""Trains what is missing of an experiment and resumes what was interrupted.

Every training is a command line of its own, printed before it starts: each row of the table can be repeated alone.
"""

from __future__ import annotations

import json
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from data.config import load_dataset_config
from data.synthetic import ensure_dataset
from engine.comparing.experiment import Experiment, automatic, merged_values
from engine.comparing.summary import Run
from engine.config.hyp import AUTO, AUTO_NUMBERS, Hyp, hyp_from_dict, read_hyp
from engine.config.options import TrainOptions
from engine.runfolder import RunFolder
from engine.training.data import split_index
from engine.training.schedule import resolve_auto
from engine.training.stages import tell_of_changed_data
from engine.training.state import run_state
from utils.errors import UserError
from utils.logging import LOGGER
from utils.paths import REPOSITORY, existing_file, file_hash, read_record, replacing
from utils.running.processes import run_child


def train_all(experiment: Experiment, folder: Path) -> list[Run]:
    """Trains the teacher and every arm with every seed, leaving out what is already there.

    Returns:
        The teacher, then the arms in their order, each with its seeds.
    """
    shared = shared_numbers(experiment)
    teacher = train_teacher(experiment, folder, shared)
    runs = [teacher]
    jobs = [(arm, seed) for arm in experiment.arms for seed in experiment.seeds]
    for number, (arm, seed) in enumerate(jobs, 1):
        settings = experiment.arms[arm]
        hyp = merged_hyp(experiment, settings, folder / "hyp" / f"{arm}.yaml", shared)
        words = arm_words(experiment, settings, read_hyp(hyp), str(teacher.weights))
        epochs = settings.get("epochs", experiment.epochs)
        words += shared_flags(experiment, hyp, {"seed": seed, "epochs": epochs})
        LOGGER.info(f"\n[{number}/{len(jobs)}] {arm}, seed {seed}")
        runs.append(Run(arm, seed, train_one(experiment, folder, f"{arm}-seed{seed}", words)))
    return runs


def arm_words(experiment: Experiment, settings: Mapping[str, Any], hyp: Hyp, teacher: str) -> list[str]:
    """The program that trains an arm, with the flags for what its student is and starts as."""
    distil = settings.get("distil", hyp.distills)
    words = ["train_distill.py" if distil else "train.py", "--cfg", experiment.student]
    weights = settings.get("weights", experiment.student_weights)
    if weights:
        words += ["--weights", weights]
    if distil:
        words += ["--teacher-weights", teacher, "--init", settings.get("init", "auto")]
    elif settings.get("init") == "inherit":
        words += ["--inherit", teacher]
    if "importance" in settings:
        words += ["--inherit-importance", settings["importance"]]
    return words


def shared_numbers(experiment: Experiment) -> dict[str, Any]:
    """What `auto` is for every training alike, the teacher's too, whatever its own file says, so that they compare.

    It follows from the epochs of the experiment. Where no file says auto, all keep what they say.
    """
    values = automatic(experiment)
    if values is None:
        return {}
    hyp = hyp_from_dict(values, "the experiment")
    config = ensure_dataset(load_dataset_config(experiment.data))
    index = split_index(TrainOptions(single_cls="--single-cls" in experiment.flags), config, "train")
    batches = -(-len(index.records) // experiment.batch_size)
    resolved, line = resolve_auto(hyp, experiment.epochs, batches, experiment.batch_size)
    LOGGER.info(f"for every training alike: {line}")
    return {key: getattr(resolved, key) for key in AUTO_NUMBERS if getattr(hyp, key) == AUTO}


def train_teacher(experiment: Experiment, folder: Path, shared: Mapping[str, Any] | None = None) -> Run:
    """The teacher: a file that is there, or one trained on the experiment's data."""
    settings = experiment.teacher
    seed = int(settings.get("seed", 0))
    if settings.get("weights"):
        return Run("teacher", seed, existing_file(settings["weights"], "teacher weights"))
    words = ["train.py"]
    for key, flag in (("cfg", "--cfg"), ("start", "--weights")):
        if settings.get(key):
            words += [flag, str(settings[key])]
    hyp = merged_hyp(experiment, settings, folder / "hyp" / "teacher.yaml", shared)
    words += shared_flags(experiment, hyp, settings)
    LOGGER.info("\n[teacher]")
    return Run("teacher", seed, train_one(experiment, folder, "teacher", words))


def shared_flags(experiment: Experiment, hyp: Path, settings: Mapping[str, Any]) -> list[str]:
    """Flags that every training has; `settings` may have its own seed, epochs, batch_size, img_size and patience."""
    values = {
        "hyp": hyp,
        "seed": settings.get("seed", 0),
        "epochs": settings.get("epochs", experiment.epochs),
        "patience": settings.get("patience", 0),
        "batch-size": settings.get("batch_size", experiment.batch_size),
        "img-size": settings.get("img_size", experiment.img_size),
    }
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def merged_hyp(
    experiment: Experiment, settings: Mapping[str, Any], path: Path, shared: Mapping[str, Any] | None = None
) -> Path:
    """Writes a hyper-parameter file with the changes of the experiment and then of the arm, and checks it."""
    source, values = merged_values(experiment, settings, shared)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as stream:
        stream.write(f"# {source} with the changes of the experiment {experiment.name}\n")
        yaml.safe_dump(values, stream, sort_keys=False)
    return path


def train_one(experiment: Experiment, folder: Path, name: str, words: list[str]) -> Path:
    """Trains one model unless its finished run folder is there already; an interrupted one is resumed.

    The training ends with this process, even where this one is killed.

    Returns:
        Path of its best.pt.
    """
    run = folder / name
    words = [*words, "--data", experiment.data, "--workers", str(experiment.workers), *experiment.flags]
    if experiment.device:
        words += ["--device", experiment.device]
    identity = {
        "command": words,
        "inputs": {w: file_hash(w) for w in words if w.endswith((".yaml", ".pt")) and Path(w).is_file()},
    }
    done, started = run / "done.json", run / "started.json"
    best, last = run / "weights" / "best.pt", run / "weights" / "last.pt"
    if done.is_file() and best.is_file():
        if same_training(read_record(done), identity):
            tell_of_changed_data(RunFolder(run, active=False), experiment.data)
            LOGGER.info(f"already trained: {best}")
            return best
        raise UserError(f"{run} holds a model trained in another way; remove that folder, or use another --name")
    same = started.is_file() and same_training(read_record(started), identity)
    state = run_state(run) if same else "empty"
    if state == "finished" and best.is_file():  # killed between its end and the note of it
        LOGGER.info(f"already trained: {best}")
    else:
        if state in ("interrupted", "evaluating"):
            command = [words[0], "--resume", str(last)]
        else:
            command = [*words, "--project", str(folder), "--name", name, "--exist-ok"]
            for path in (last, best):  # of another training, which must not be taken for this one later
                path.unlink(missing_ok=True)
        run.mkdir(parents=True, exist_ok=True)
        with replacing(started) as stream:
            json.dump(identity, stream, indent=2)
        LOGGER.info("$ " + shlex.join(["python", *command]))
        check_ending(name, run_child([sys.executable, str(REPOSITORY / command[0]), *command[1:]]))
    with replacing(done) as stream:
        json.dump(identity, stream, indent=2)
    return best


def check_ending(name: str, code: int) -> None:
    """Raises the UserError of a training that did not end well."""
    if code == -getattr(signal, "SIGKILL", 9):
        raise UserError(
            f"the training of {name} was killed, most likely because the memory is full; the same command goes on from "
            "its last epoch, with smaller `workers:` or `batch_size:` if it happens again"
        )
    if code:
        raise UserError(f"the training of {name} failed; its messages are above. The same command goes on from there")


def same_training(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two identities are of the same training, wherever and by however many workers it is done."""
    commands = [_essential(each.get("command") or ()) for each in (one, other)]
    return one.get("inputs") == other.get("inputs") and commands[0] == commands[1]


def _essential(words: Sequence[str]) -> list[str]:
    places = {i + offset for i, word in enumerate(words) if word in ("--workers", "--device") for offset in (0, 1)}
    return [word for i, word in enumerate(words) if i not in places]
