"""An experiment file: one teacher, one student, several arms and seeds, all else equal."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from checkpoints.checkpoint import load_checkpoint
from data.config import DatasetConfig, load_dataset_config
from engine.config.defaults import hyp_values, kind_of_student
from engine.config.flags import MOST_EPOCHS
from engine.config.hyp import AUTO, AUTO_NUMBERS, hyp_from_dict
from engine.config.options import IMPORTANCES, INITS
from models.config import read_model_config
from utils.device import select_device
from utils.errors import UserError, unknown_name
from utils.names import class_order
from utils.paths import existing_file, run_path
from utils.running.cli import LEAST_PIXELS, MOST_IMAGES, MOST_PIXELS, MOST_PROCESSES, MOST_SEED, check_range
from utils.text import MAX_PATH_SHOWN, printable, shown, shown_path
from utils.yaml_io import check_keys, load_yaml

TEACHER_KEYS = ("weights", "start", "cfg", "hyp", "changes", "epochs", "seed", "batch_size", "img_size", "patience")
ARM_KEYS = ("hyp", "changes", "distil", "init", "importance", "weights", "epochs")
CHOICES = {"init": INITS, "importance": IMPORTANCES}
SPLITS = ("train", "val", "test")
ARM_NAME = re.compile(r"[^\W_][\w .+@=,-]{0,99}")
TEXTS = ("name", "data", "student", "student_weights", "hyp", "device", "weights", "start", "cfg", "headline")
RANGES = {
    "epochs": (1, MOST_EPOCHS), "batch_size": (1, MOST_IMAGES), "img_size": (LEAST_PIXELS, MOST_PIXELS),
    "workers": (0, MOST_PROCESSES), "pictures": (0, 10_000), "seed": (0, MOST_SEED), "patience": (0, MOST_EPOCHS),
}  # fmt: skip
MOST_SEEDS = 1000
OWN_FLAGS = ("--resume", "--project", "--name", "--exist-ok")  # of a training: they say where it lies


@dataclass(frozen=True)
class Experiment:
    """What is compared with what.

    Attributes:
        name: folder of the experiment below the project.
        data: data set yaml.
        student: architecture of the student, trained from scratch unless `student_weights` is given.
        student_weights: checkpoint that every arm's student starts from.
        teacher: {weights} of a trained teacher, or what to train one from: {cfg or start, hyp, epochs, ...}.
        arms: name -> {hyp, changes, distil, init, importance, weights, epochs}. `changes` replaces values of the hyp
            file. An arm is distilled when the result has kd_losses, unless `distil` says no. `init` is that of
            train_distill.py; an arm that is not distilled starts from scratch, or with `init: inherit` as a part of the
            teacher, whose channels `importance` chooses. `weights` stands for `student_weights`.
        hyp: hyper-parameters of the arms that name none; without it those of the network's family, with the default
            recipe where an arm has `distil: true`.
        changes: values that replace those of every hyp file, the teacher's too.
        epochs: length of every arm that names none of its own; equal for all, or nothing could be concluded.
        seeds: one run of every arm for each.
        workers: loader processes of each training.
        device: where all models are trained and measured.
        split: where the final figures come from: val or test.
        pictures: how many images are drawn with the boxes of all models.
        flags: further words of every training's command line.
        headline: the arm that the report's first sentence speaks of; by default the first that inherits and is
            distilled.
    """

    name: str
    data: str
    student: str
    teacher: Mapping[str, Any]
    arms: Mapping[str, Mapping[str, Any]]
    hyp: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)
    student_weights: str = ""
    epochs: int = 100
    batch_size: int = 16
    img_size: int = 640
    seeds: tuple[int, ...] = (0,)
    workers: int = 2
    device: str = ""
    split: str = "val"
    pictures: int = 8
    flags: tuple[str, ...] = field(default=())
    headline: str = ""


def load_experiment(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """Reads an experiment file; values of `overrides` that are not None replace those of the file.

    Raises:
        UserError: the file is missing, has an unknown key, or lacks one that is needed.
    """
    content = load_yaml(path, "experiment file", (*TEXTS, "flags", "split"))
    path = printable(path, MAX_PATH_SHOWN)
    given = _given_flags(overrides or {})
    check_keys(content, [f.name for f in fields(Experiment)], path)
    values = _without_null(content)
    for key in ("name", "data", "student", "teacher", "arms"):
        if key not in values:
            raise UserError(f"{path}: `{key}:` is missing; see experiments/demo.yaml for an example")
    if not isinstance(values["teacher"], Mapping) or not isinstance(values["arms"], Mapping):
        raise UserError(f"{path}: teacher and arms must be mappings; see experiments/demo.yaml for an example")
    check_keys(values["teacher"], TEACHER_KEYS, f"{path}: teacher")
    values["teacher"] = _without_null(values["teacher"])
    if not {"weights", "cfg", "start"} & set(values["teacher"]):
        raise UserError(f"{path}: teacher needs `weights:` (a trained one), or `cfg:` or `start:` (to train one)")
    _check_values(values["teacher"], f"{path}: teacher")
    values["arms"] = _arms(values["arms"], f"{path}: arms")
    values |= given
    _check_values(values, path)
    for key in ("seeds", "flags"):
        if key in values:
            values[key] = tuple(values[key]) if isinstance(values[key], list | tuple) else (values[key],)
    _check_seeds(values.get("seeds", (0,)), f"{path}: seeds are")
    if not all(isinstance(word, str) for word in values.get("flags", ())):
        raise UserError(f"{path}: flags are {shown(values['flags'])}; expected words such as [--rect, --patience, 5]")
    _check_flags(values.get("flags", ()), path)
    if values.get("split", "val") not in SPLITS:
        raise UserError(f"{path}: split is {shown(values['split'])}; expected one of {', '.join(SPLITS)}")
    _check_name(values["name"], path)
    _check_headline(values, path)
    return Experiment(**values)


def _check_flags(words: Sequence[str], where: str) -> None:
    """Refuses flags that would send a training elsewhere than into its folder; argparse takes their beginnings too."""
    for word in words:
        name = word.partition("=")[0]
        flag = next((own for own in OWN_FLAGS if len(name) > len("--") and own.startswith(name)), "")
        if flag:
            raise UserError(f"{where}: flags has {shown(word)}; {flag} is set by compare.py itself, leave it out")


def _without_null(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those that are null, which stands for the default."""
    return {key: value for key, value in values.items() if value is not None}


def _given_flags(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that were given, in range."""
    given = _without_null(overrides)
    if "epochs" in given:
        check_range("--epochs", given["epochs"], *RANGES["epochs"])
    if "name" in given:
        run_path("", given["name"])
    for seed in given.get("seeds", ()):
        check_range("--seeds", seed, 0, MOST_SEED)
    return given


def _check_seeds(seeds: Sequence[Any], what: str) -> None:
    if not 0 < len(seeds) <= MOST_SEEDS or not all(type(s) is int and 0 <= s <= MOST_SEED for s in seeds):
        raise UserError(f"{what} {shown(list(seeds))}; expected different whole numbers from 0 to {MOST_SEED}")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{what} {shown(list(seeds))}; expected different whole numbers")


def _check_headline(values: Mapping[str, Any], where: str) -> None:
    known = [*values["arms"]][1:]
    if values.get("headline") and values["headline"] not in known:
        raise unknown_name("arm to compare", values["headline"], known, f"{where}: headline")


def _check_name(name: str, where: str) -> None:
    try:
        run_path("", name)
    except UserError as error:
        raise UserError(f"{where}: {str(error).replace('--name', 'name')}") from error


def _arms(arms: Mapping[str, Any], where: str) -> dict[str, dict[str, Any]]:
    """The arms with their settings; an arm without any trains as the experiment's defaults say."""
    if not arms:
        raise UserError(f"{where} is empty; list the trainings that are compared, the baseline first")
    for name, arm in arms.items():
        if not ARM_NAME.fullmatch(name) or name == "teacher":  # it names folders and files
            raise UserError(f"{where}: {shown(name)} is no name for an arm; use letters, digits, dots, - and _")
        if not isinstance(arm, Mapping | None):
            raise UserError(f"{where}: {name} is {shown(arm)}; expected settings such as {{hyp: hyp/distill.fgd.yaml}}")
        check_keys(arm or {}, ARM_KEYS, f"{where}: {name}")
        _check_values(_without_null(arm or {}), f"{where}: {name}")
        for key, choices in CHOICES.items():
            if (arm or {}).get(key) not in (None, *choices):
                found, known = shown((arm or {})[key]), ", ".join(choices)
                raise UserError(f"{where}: {name}: {key} is {found}; expected one of {known}")
    return {name: _without_null(arm or {}) for name, arm in arms.items()}


def _check_values(values: Mapping[str, Any], where: str) -> None:
    """Refuses settings of another kind than the experiment and its parts take."""
    for key, value in values.items():
        if key in TEXTS and not isinstance(value, str):
            raise UserError(f"{where}: {key} is {shown(value)}; expected text")
        if key in RANGES:
            least, most = RANGES[key]
            if type(value) is not int or value < least:
                raise UserError(f"{where}: {key} is {shown(value)}; expected a whole number of at least {least}")
            if value > most:
                raise UserError(f"{where}: {key} is {shown(value)}; expected a whole number of at most {most}")
        if key == "changes" and not isinstance(value, Mapping):
            raise UserError(f"{where}: changes is {shown(value)}; expected hyper-parameters such as {{lr0: 0.01}}")
        if key == "distil" and not isinstance(value, bool):
            raise UserError(f"{where}: distil is {shown(value)}; expected true or false")


def merged_values(
    experiment: Experiment, settings: Mapping[str, Any], shared: Mapping[str, Any] | None = None
) -> tuple[str, dict[str, Any]]:
    """A hyper-parameter file and its content with the changes of the experiment and then of the arm, checked.

    Args:
        experiment: whose changes count.
        settings: of the teacher or an arm.
        shared: numbers that replace the file's, as all trainings have them, but not those of changes.
    """
    source = str(settings.get("hyp") or experiment.hyp)
    if settings is experiment.teacher:
        kind = kind_of_student(str(settings.get("cfg") or ""), str(settings.get("start") or ""))
    else:  # the same for every arm, whatever weights an arm has of its own, or they would not compare
        kind = kind_of_student(experiment.student, experiment.student_weights)
    loaded = hyp_values(source, kind, bool(settings.get("distil")))
    source = source or f"the defaults for {kind}"
    changes = {**experiment.changes, **(settings.get("changes") or {})}
    numbers = {key: value for key, value in (shared or {}).items() if changes.get(key, AUTO) == AUTO}
    values = {**loaded.values, **changes, **numbers}
    hyp_from_dict(values, f"{source} with the changes of the experiment" if changes else source)
    return source, values


def check_files(experiment: Experiment) -> None:
    """Looks at all that the experiment names, so that a mistake shows now and not after hours of training.

    Raises:
        UserError: a file or the device is not there, or a file is not understood.
    """
    teacher = experiment.teacher
    select_device(experiment.device)
    config = load_dataset_config(experiment.data)
    config.split(experiment.split)
    for architecture in (experiment.student, teacher.get("cfg")):
        if architecture:
            read_model_config(architecture)
    for what, path in (
        ("teacher weights", teacher.get("weights")),
        ("start of the teacher", teacher.get("start")),
        ("student weights", experiment.student_weights),
    ):
        if path:
            existing_file(path, what)
    if teacher.get("weights"):
        _check_teacher(str(teacher["weights"]), config)
    for settings in (teacher, *experiment.arms.values()):
        merged_values(experiment, settings)
    for name, arm in experiment.arms.items():
        if arm.get("weights"):
            existing_file(arm["weights"], f"weights of the arm {name}")
        if arm.get("weights", experiment.student_weights) and arm.get("init") == "inherit":
            raise UserError(f"arms: {name}: init is inherit, but weights say what the student starts as; drop one")


def automatic(experiment: Experiment) -> dict[str, Any] | None:
    """The hyper-parameters of the first training that has an `auto` among them; None where none has."""
    trained = () if experiment.teacher.get("weights") else (experiment.teacher,)
    for settings in (*trained, *experiment.arms.values()):
        values = merged_values(experiment, settings)[1]
        if any(values.get(key) == AUTO for key in AUTO_NUMBERS):
            return values
    return None


def _check_teacher(path: str, config: DatasetConfig) -> None:
    """Refuses a teacher that the report, at the end, could not measure on the data set."""
    checkpoint = load_checkpoint(path)
    if checkpoint.nc != config.nc:
        raise UserError(
            f"teacher weights {shown_path(path)} have {checkpoint.nc} classes, {shown_path(config.path)} has "
            f"{config.nc}; "
            "the teacher is measured beside its students, so name one of the same classes"
        )
    class_order(config.names, checkpoint.names, str(config.path), path)
