"""How far an experiment is, and how long it will take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.reporting.runs import describe_seconds
from utils.plots import read_columns


@dataclass(frozen=True)
class Planned:
    """A training of an experiment: its folder's name, its arm, its epochs."""

    name: str
    arm: str
    epochs: int


@dataclass(frozen=True)
class State:
    """How far a training is: epochs done and to do, and seconds an epoch (None: not known yet)."""

    arm: str
    done: int
    left: int
    seconds: float | None


class Progress:
    """The progress of an experiment, from what the run folders say.

    Args:
        planned: all trainings.
        jobs: that run side by side.
    """

    def __init__(self, planned: Sequence[Planned], jobs: int) -> None:
        self.planned, self.jobs = planned, jobs

    def states(self, folder: Path) -> Iterator[State]:
        """How far each training is."""
        for each in self.planned:
            run = folder / each.name
            try:
                columns = read_columns(run / "results.csv")
            except (OSError, ValueError):
                columns = {}
            done = len(columns.get("epoch", ()))
            times = columns.get("time/epoch", np.zeros(0))
            known = times[np.isfinite(times)]
            finished = (run / "done.json").is_file()
            left = 0 if finished else max(each.epochs - done, 0)
            yield State(each.arm, done if left else each.epochs, left, float(np.median(known)) if len(known) else None)

    def line(self, folder: Path) -> str:
        """The progress in a line: 3 of 13 trainings done, 24 % of the epochs, about 25 min left."""
        states = list(self.states(folder))
        done = sum(not state.left for state in states)
        epochs, total = sum(s.done for s in states), sum(s.done + s.left for s in states)
        text = f"{done} of {len(states)} trainings done, {100 * epochs // max(total, 1)} % of the epochs"
        left = seconds_left(states, self.jobs)
        return text if left is None or done == len(states) else f"{text}, about {describe_seconds(left)} left"


def seconds_left(states: Sequence[State], jobs: int) -> float | None:
    """Time until the last training ends; None while no epoch's time is known.

    An epoch takes as long as those of the same arm, of an arm without any as long as all on average. Trainings are not
    divided: the longest one sets a limit, however many run side by side.
    """
    known = [state.seconds for state in states if state.seconds is not None]
    if not known:
        return None
    by_arm: dict[str, list[float]] = {}
    for state in states:
        if state.seconds is not None:
            by_arm.setdefault(state.arm, []).append(state.seconds)
    arms = {arm: float(np.mean(times)) for arm, times in by_arm.items()}
    students = [value for arm, value in arms.items() if arm != "teacher"] or list(arms.values())
    times = [state.left * arms.get(state.arm, float(np.mean(students))) for state in states]
    return max(sum(times) / jobs, max(times))
