"""An experiment file: one teacher, one student, several arms and seeds, all else equal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.yaml_io import check_keys, load_yaml

TEACHER_KEYS = ("weights", "start", "cfg", "hyp", "changes", "epochs", "seed", "batch_size", "img_size", "patience")
ARM_KEYS = ("hyp", "changes", "distil")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Experiment:
    """What is compared with what.

    Attributes:
        name: folder of the experiment below the project.
        data: data set yaml.
        student: architecture of the student, trained from scratch unless `student_weights` is given.
        student_weights: checkpoint that every arm's student starts from.
        teacher: {weights} of a trained teacher, or what to train one from: {cfg or start, hyp, epochs, ...}.
        arms: name -> {hyp, changes, distil}. `changes` replaces values of the hyp file. An arm is distilled when
            the result has kd_losses, unless `distil` says no.
        hyp: hyper-parameters of the arms that name none.
        changes: values that replace those of every hyp file, the teacher's too.
        epochs: length of every arm; equal for all, or nothing could be concluded.
        seeds: one run of every arm for each.
        workers: loader processes of each training.
        device: where all models are trained and measured.
        split: where the final figures come from: val or test.
        pictures: how many images are drawn with the boxes of all models.
        flags: further words of every training's command line.
    """

    name: str
    data: str
    student: str
    teacher: Mapping[str, Any]
    arms: Mapping[str, Mapping[str, Any]]
    hyp: str = "hyp/scratch-low.yaml"
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


def load_experiment(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """Reads an experiment file; values of `overrides` that are not None replace those of the file.

    Raises:
        UserError: the file is missing, has an unknown key, or lacks one that is needed.
    """
    values = load_yaml(path, "experiment file")
    check_keys(values, [f.name for f in fields(Experiment)], str(path))
    for key in ("name", "data", "student", "teacher", "arms"):
        if key not in values:
            raise UserError(f"{path}: `{key}:` is missing; see experiments/demo.yaml for an example")
    if not isinstance(values["teacher"], Mapping) or not isinstance(values["arms"], Mapping):
        raise UserError(f"{path}: teacher and arms must be mappings; see experiments/demo.yaml for an example")
    check_keys(values["teacher"], TEACHER_KEYS, f"{path}: teacher")
    if not {"weights", "cfg", "start"} & set(values["teacher"]):
        raise UserError(f"{path}: teacher needs `weights:` (a trained one), or `cfg:` or `start:` (to train one)")
    for name, arm in values["arms"].items():
        check_keys(arm or {}, ARM_KEYS, f"{path}: arms: {name}")
    values["arms"] = {str(name): dict(arm or {}) for name, arm in values["arms"].items()}
    values |= {k: v for k, v in (overrides or {}).items() if v is not None}
    for key in ("seeds", "flags"):
        if key in values:
            values[key] = tuple(values[key]) if isinstance(values[key], list | tuple) else (values[key],)
    values["flags"] = tuple(str(word) for word in values.get("flags", ()))
    if values.get("split", "val") not in SPLITS:
        raise UserError(f"{path}: split is {values['split']!r}; expected one of {', '.join(SPLITS)}")
    return Experiment(**values)
