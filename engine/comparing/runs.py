"""Trains what is missing of an experiment and resumes what was interrupted.

Every training is a command line of its own, printed before it starts: each row of the table can be repeated alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from data.config import load_dataset_config
from data.synthetic import ensure_dataset
from engine.comparing.experiment import Experiment, automatic, merged_values
from engine.comparing.progress import Planned, Progress
from engine.comparing.side_by_side import threads_each, train_side_by_side
from engine.comparing.summary import Run
from engine.comparing.trainings import Training, train_one
from engine.config.hyp import AUTO, AUTO_NUMBERS, Hyp, hyp_from_dict, read_hyp
from engine.config.options import TrainOptions
from engine.training.data import split_index
from engine.training.schedule import resolve_auto
from utils.errors import UserError
from utils.logging import LOGGER
from utils.paths import existing_file, replacing
from utils.text import shown_path


def train_all(experiment: Experiment, folder: Path, jobs: int = 1, threads: int | None = None) -> list[Run]:
    """Trains the teacher and every arm with every seed, leaving out what is already there.

    Args:
        experiment: what is compared.
        folder: of the experiment.
        jobs: trainings side by side; the teacher's, which the others need, is always alone.
        threads: of each training; by default all, or each job's part of them.

    Returns:
        The teacher, then the arms in their order, each with its seeds.
    """
    shared = shared_numbers(experiment)
    threads = threads_each(jobs, threads)
    progress = Progress(planned_trainings(experiment), jobs)
    teacher = train_teacher(experiment, folder, threads, shared, progress)
    trainings, runs = [], [teacher]
    for arm, settings in experiment.arms.items():
        hyp = merged_hyp(experiment, settings, folder / "hyp" / f"{arm}.yaml", shared)
        words = arm_words(experiment, settings, read_hyp(hyp), str(teacher.weights))
        for seed in experiment.seeds:
            values = {"seed": seed, "epochs": settings.get("epochs", experiment.epochs)}
            training = Training(f"{arm}-seed{seed}", (*words, *shared_flags(experiment, hyp, values)))
            trainings.append(training)
            runs.append(Run(arm, seed, training.best(folder)))
    if jobs > 1:
        train_side_by_side(experiment, folder, trainings, jobs, threads, progress)
    else:
        for training in trainings:
            LOGGER.info(f"\n[{training.name}] {progress.line(folder)}")
            train_one(experiment, folder, training, threads)
    return runs


def planned_trainings(experiment: Experiment) -> list[Planned]:
    """Every training of an experiment with its length, the teacher's first."""
    settings = experiment.teacher
    own = [] if settings.get("weights") else [Planned("teacher", "teacher", settings.get("epochs", experiment.epochs))]
    return own + [
        Planned(f"{arm}-seed{seed}", arm, settings.get("epochs", experiment.epochs))
        for arm, settings in experiment.arms.items() for seed in experiment.seeds
    ]  # fmt: skip


def finished_runs(experiment: Experiment, folder: Path) -> list[Run]:
    """The runs of an experiment that are trained already, the teacher first; what is missing is told.

    Raises:
        UserError: there is no teacher yet, or no arm.
    """
    settings = experiment.teacher
    teacher = Path(settings["weights"]) if settings.get("weights") else folder / "teacher" / "weights" / "best.pt"
    runs, missing = [Run("teacher", int(settings.get("seed", 0)), teacher)], []
    if not teacher.is_file() or not (settings.get("weights") or (folder / "teacher" / "done.json").is_file()):
        raise UserError(f"{shown_path(folder)} has no trained teacher yet; run the experiment without --report-only")
    for arm, seed in ((arm, seed) for arm in experiment.arms for seed in experiment.seeds):
        run = folder / f"{arm}-seed{seed}"
        if (run / "done.json").is_file() and (run / "weights" / "best.pt").is_file():
            runs.append(Run(arm, seed, run / "weights" / "best.pt"))
        else:
            missing.append(run.name)
    if missing:
        LOGGER.warning(f"warning: not trained yet, so not in the report: {', '.join(missing)}")
    if not any(run.role == next(iter(experiment.arms)) for run in runs):
        raise UserError(f"{shown_path(folder)} has no trained baseline yet; run the experiment without --report-only")
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


def train_teacher(
    experiment: Experiment, folder: Path, threads: int | None, shared: Mapping[str, Any], progress: Progress
) -> Run:
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
    LOGGER.info(f"\n[teacher] {progress.line(folder)}")
    return Run("teacher", seed, train_one(experiment, folder, Training("teacher", tuple(words)), threads))


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
