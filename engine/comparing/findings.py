"""What a comparison found: its arms, their figures, the answer, and what must be said beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.comparing.arms import Arm, describe_arms, teacher_start
from engine.comparing.experiment import Experiment
from engine.comparing.summary import TEACHER, enough_seeds, headline, summarise
from engine.comparing.wording import answer, notes, number_word
from engine.reporting.runs import RunFacts, read_run
from engine.reporting.statistics import MIN_SEEDS


@dataclass(frozen=True)
class Findings:
    """A comparison as its reports tell it.

    Attributes:
        arms: by their names, the baseline first.
        summary: of `summarise`.
        entry: the row of the summary that the sentence speaks of; None where there is none.
        sentence: the answer.
        warnings: without which it would mislead.
        remarks: what else one should know.
        facts: of each training, by role and seed.
    """

    arms: Mapping[str, Arm]
    summary: Sequence[Mapping[str, Any]]
    entry: Mapping[str, Any] | None
    sentence: str
    warnings: Sequence[str]
    remarks: Sequence[str]
    facts: Mapping[tuple[str, int], RunFacts]

    @property
    def baseline(self) -> str:
        """Name of the first arm."""
        return next(iter(self.arms))


def conclude(
    experiment: Experiment,
    rows: Sequence[Mapping[str, Any]],
    resampled: Mapping[tuple[str, int], np.ndarray] | None = None,
) -> Findings:
    """What the runs of an experiment show.

    Args:
        experiment: whose arms they are.
        rows: of the runs, as an Evaluation has them.
        resampled: AP of resampled images, by role and seed.
    """
    arms = describe_arms(experiment, rows)
    summary = summarise(rows, arms, resampled)
    entry = headline(summary, experiment.headline)
    facts = {(row["role"], row["seed"]): read_run(Path(row["weights"])) for row in rows}
    return Findings(
        arms=arms,
        summary=summary,
        entry=entry,
        sentence=answer(summary, arms, entry),
        warnings=list(_warnings(summary, facts)),
        remarks=list(notes(summary, arms, entry, teacher_start(experiment, rows))),
        facts=facts,
    )


def _warnings(summary: Sequence[Mapping[str, Any]], facts: Mapping[tuple[str, int], RunFacts]) -> Iterator[str]:
    few = [each["role"] for each in summary if each.get("difference") and not enough_seeds(each["difference"])]
    if few:
        number = max(len(each["difference"]["seeds"]) for each in summary if each["role"] in few)
        yield (
            f"Too few seeds ({number_word(number)}; {number_word(MIN_SEEDS)} are the least): what {', '.join(few)} "
            "differ by may be chance, and nothing is claimed."
        )
    for role in dict.fromkeys(role for role, _ in facts):
        own = {seed: each for (name, seed), each in facts.items() if name == role}
        rising = [seed for seed, each in own.items() if not each.converged]
        if rising:
            rise = 100 * max(own[seed].rise for seed in rising)
            which = "" if role == TEACHER else f" (seed{'s' if len(rising) > 1 else ''} {', '.join(map(str, rising))})"
            yield (
                f"{role} had not converged{which}: the best epoch is among the last, and validation AP rose by up to "
                f"{rise:.1f} points over the last fifth of the epochs."
            )
        for fault in dict.fromkeys(fault for each in own.values() for fault in each.forced):
            yield f"{role} was trained with --force, although the gate refused its teacher. {fault}"
    yield from _thread_warning(facts)


def _thread_warning(facts: Mapping[tuple[str, int], RunFacts]) -> Iterator[str]:
    """On a CPU the number of threads changes the order of sums, and so the last digits of the weights."""
    runs: dict[int, list[str]] = {}
    for (role, seed), each in facts.items():
        if role != TEACHER and each.threads is not None:
            runs.setdefault(each.threads, []).append(f"{role} {seed}")
    if len(runs) > 1:
        told = "; ".join(f"{number}: {', '.join(runs[number])}" for number in sorted(runs))
        yield (
            f"The trainings had different numbers of threads ({told}): each is sound, but equal settings do not give "
            "equal weights across them, and their times do not compare. --threads sets one number for all."
        )
