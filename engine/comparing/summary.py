"""The runs of an experiment as numbers: mean and spread over the seeds, and differences seed by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.comparing.arms import INHERITED, Arm
from engine.reporting.matching import percentile_interval
from engine.reporting.statistics import LEVEL, MIN_SEEDS, mean_and_spread, paired, seeds_needed, share_of_gap

METRICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
FACTS = ("parameters", "gflops", "ms")
TEACHER = "teacher"
SMALL_DIFFERENCE = 0.01
"""AP that the note on power asks about."""


@dataclass(frozen=True)
class Run:
    """One trained model of an experiment: its role (teacher or the arm's name), its seed and its file."""

    role: str
    seed: int
    weights: Path


def summarise(
    rows: Sequence[Mapping[str, Any]],
    arms: Mapping[str, Arm],
    resampled: Mapping[tuple[str, int], np.ndarray] | None = None,
) -> list[dict[str, Any]]:
    """One row a role, in the order of the runs.

    Args:
        rows: one a run: role, seed, METRICS (0 to 1) and FACTS.
        arms: as `describe_arms` gives them, the baseline first.
        resampled: AP of resampled images, by role and seed, the same images for all.

    Returns:
        role, runs, (mean, spread) of each metric, mean of each fact. Arms also have start, distilled, epochs and
        equal_epochs; all but the baseline `difference`, a Paired of their AP to the baseline's as plain values (None
        without a common seed), and `share`, {mean, least, most} of the gap between the baseline's mean and the
        teacher's that they close, over the same seeds. A distilled arm with a counterpart other than the baseline has
        `added`: {to, ...} as the difference, to that arm. With `resampled`, a difference also has `over_images`: the
        interval of its mean when the images are drawn anew and the seeds stay; None without it.
    """
    by_role: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        by_role.setdefault(row["role"], {})[row["seed"]] = row
    ap = {role: {seed: row["AP"] for seed, row in own.items()} for role, own in by_role.items()}
    baseline = next(iter(arms))
    teacher = mean_and_spread(list(ap[TEACHER].values()))[0] if TEACHER in ap else None
    summary = []
    for role, own in by_role.items():
        entry: dict[str, Any] = {"role": role, "runs": len(own)}
        entry |= {metric: mean_and_spread([row[metric] for row in own.values()]) for metric in METRICS}
        entry |= {fact: mean_and_spread([row[fact] for row in own.values()])[0] for fact in FACTS}
        arm = arms.get(role)
        if arm:
            entry |= {"start": arm.start, "distilled": arm.distilled}
            entry |= {"epochs": arm.epochs, "equal_epochs": arm.equal_epochs}
        if arm and role != baseline:
            entry["difference"] = _difference(ap, role, baseline, resampled)
            entry["share"] = _share(entry["difference"], ap, role, baseline, teacher)
            if arm.counterpart not in (None, baseline) and arm.counterpart in ap:
                found = _difference(ap, role, arm.counterpart, resampled)
                entry["added"] = found and {"to": arm.counterpart, **found}
        summary.append(entry)
    return summary


def _difference(
    ap: Mapping[str, Mapping[int, float]],
    role: str,
    other: str,
    resampled: Mapping[tuple[str, int], np.ndarray] | None,
) -> dict[str, Any] | None:
    found = paired(ap[role], ap.get(other, {}))
    if found is None:
        return None
    over_images = None
    if resampled:
        draws = [resampled[role, seed] - resampled[other, seed] for seed in found.seeds]
        over_images = percentile_interval(np.mean(draws, axis=0), LEVEL)
    return {**asdict(found), "better": found.better, "over_images": over_images}


def _share(
    difference: Mapping[str, Any] | None,
    ap: Mapping[str, Mapping[int, float]],
    role: str,
    baseline: str,
    teacher: float | None,
) -> dict[str, float] | None:
    """What an arm closes of the gap between the mean baseline and the teacher; None where there is no gap."""
    if not difference or teacher is None:
        return None
    seeds = difference["seeds"]
    start = mean_and_spread([ap[baseline][seed] for seed in seeds])[0]
    own = [share_of_gap(ap[role][seed], start, teacher) for seed in seeds]
    shares = [share for share in own if share is not None]
    return {"mean": mean_and_spread(shares)[0], "least": min(shares), "most": max(shares)} if shares else None


def headline(summary: Sequence[Mapping[str, Any]], chosen: str = "") -> Mapping[str, Any] | None:
    """The arm that the first sentence speaks of: the chosen one, else the first that inherits and is distilled, else
    the first distilled one, else the first beside the baseline. Never the best one: that would be chosen by its luck.
    """
    others = [entry for entry in summary if entry.get("difference")]
    equal = [entry for entry in others if entry["equal_epochs"]]
    for candidates in (
        [entry for entry in others if entry["role"] == chosen],
        [entry for entry in equal if entry["distilled"] and entry["start"] == INHERITED],
        [entry for entry in equal if entry["distilled"]],
        equal or others,
    ):
        if candidates:
            return candidates[0]
    return None


def power_note(difference: Mapping[str, Any]) -> dict[str, Any]:
    """How many seeds would show a difference of SMALL_DIFFERENCE with the spread that was found.

    Returns:
        difference, spread, and seeds (None: more than can be asked for).
    """
    needed = seeds_needed(SMALL_DIFFERENCE, difference["spread"])
    return {"difference": SMALL_DIFFERENCE, "spread": difference["spread"], "seeds": needed}


def ratio_of_parameters(summary: Sequence[Mapping[str, Any]], role: str) -> float | None:
    """How many times more parameters the teacher has than an arm's student."""
    sizes = {entry["role"]: entry["parameters"] for entry in summary}
    return sizes[TEACHER] / sizes[role] if TEACHER in sizes and sizes.get(role) else None


def enough_seeds(difference: Mapping[str, Any]) -> bool:
    """Whether there are as many seeds as a claim needs."""
    return len(difference["seeds"]) >= MIN_SEEDS
