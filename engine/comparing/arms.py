"""What the arms of an experiment are: how their students start, whether a teacher trains them, and for how long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.comparing.experiment import Experiment, automatic, merged_values
from engine.config.hyp import AUTO, AUTO_NUMBERS, hyp_from_dict
from engine.runfolder import RunFolder

SCRATCH, INHERITED, WEIGHTS = "scratch", "inherited", "weights"


@dataclass(frozen=True)
class Arm:
    """An arm as the statistics see it.

    Attributes:
        name: as in the experiment file.
        start: SCRATCH, INHERITED (a part of the teacher) or WEIGHTS (a file).
        distilled: a teacher takes part in its training.
        epochs: of its trainings.
        equal_epochs: as many as the baseline's; of an arm with another number nothing is claimed.
        counterpart: the arm that differs in the distillation alone, where there is one.
    """

    name: str
    start: str
    distilled: bool
    epochs: int
    equal_epochs: bool
    counterpart: str | None = None

    @property
    def kind(self) -> str:
        """The arm's steps in words; empty for one that has none."""
        steps = [*(["inherited"] if self.start == INHERITED else []), *(["distilled"] if self.distilled else [])]
        return " and ".join(steps)


def describe_arms(experiment: Experiment, rows: Sequence[Mapping[str, Any]]) -> dict[str, Arm]:
    """The arms of an experiment by their names, the baseline first.

    Args:
        experiment: whose files are read.
        rows: of the runs, whose manifests say what `init: auto` came to.
    """
    baseline = next(iter(experiment.arms.values()))
    length = baseline.get("epochs", experiment.epochs)
    numbers = automatic(experiment) or {}
    shared = {key: AUTO for key in AUTO_NUMBERS if numbers.get(key) == AUTO}  # one number for all, as they are trained
    arms: dict[str, Arm] = {}
    plain: dict[str, tuple[Any, ...]] = {}
    for name, settings in experiment.arms.items():
        source, values = merged_values(experiment, settings, shared)
        hyp = hyp_from_dict(values, source)
        distilled = bool(settings.get("distil", hyp.distills))
        start = _start(experiment, settings, distilled, [row for row in rows if row["role"] == name])
        epochs = int(settings.get("epochs", experiment.epochs))
        arms[name] = Arm(name, start, distilled, epochs, epochs == length)
        weights = settings.get("weights", experiment.student_weights)
        importance = settings.get("importance", "taylor") if start == INHERITED else ""
        plain[name] = (start, weights, importance, epochs, hyp.without_distillation())
    for name, arm in arms.items():
        alike = [other for other in arms if plain[other] == plain[name] and not arms[other].distilled]
        if arm.distilled and alike:
            arms[name] = Arm(arm.name, arm.start, True, arm.epochs, arm.equal_epochs, alike[0])
    return arms


def _start(
    experiment: Experiment, settings: Mapping[str, Any], distilled: bool, rows: Sequence[Mapping[str, Any]]
) -> str:
    if settings.get("weights", experiment.student_weights):
        return WEIGHTS
    init = settings.get("init", "auto" if distilled else "scratch")
    if init == "auto" and distilled:
        facts = [run_manifest(row["weights"]).get("init") for row in rows]
        return INHERITED if any(isinstance(f, dict) and f.get("from") == "teacher" for f in facts) else SCRATCH
    return INHERITED if init == "inherit" else SCRATCH


def run_manifest(weights: str | Path) -> dict[str, Any]:
    """The manifest of the run folder that a checkpoint lies in; nothing where it lies in none."""
    return RunFolder(Path(weights).parent.parent, active=False).manifest()


def teacher_start(experiment: Experiment, rows: Sequence[Mapping[str, Any]]) -> str:
    """The file that the teacher's training began from; empty where it began from scratch, or nothing says."""
    if experiment.teacher.get("weights"):
        start = next((run_manifest(row["weights"]).get("start") for row in rows if row["role"] == "teacher"), None)
        return str(start.get("path", "")) if isinstance(start, dict) else ""
    return str(experiment.teacher.get("start") or "")
