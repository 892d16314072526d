"""The runs of an experiment as numbers: mean and spread over the seeds, and differences seed by seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Run:
    """One trained model of an experiment: its role (teacher or the arm's name), its seed and its file."""

    role: str
    seed: int
    weights: Path


def mean_and_spread(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for a single value)."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, 0.0
    return mean, (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5


def summarise(rows: list[dict[str, Any]], baseline: str) -> list[dict[str, Any]]:
    """One row a role: mean and spread over the seeds, and the difference from the baseline seed by seed."""
    roles = list(dict.fromkeys(row["role"] for row in rows))
    by_seed = {row["seed"]: row["AP"] for row in rows if row["role"] == baseline}
    summary = []
    for role in roles:
        own = [row for row in rows if row["role"] == role]
        entry: dict[str, Any] = {"role": role, "runs": len(own)}
        for metric in ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"):
            entry[metric] = mean_and_spread([row[metric] for row in own])
        for fact in ("parameters", "gflops", "ms"):
            entry[fact] = mean_and_spread([row[fact] for row in own])[0]
        if role not in ("teacher", baseline):
            gains = [row["AP"] - by_seed[row["seed"]] for row in own if row["seed"] in by_seed]
            entry["gain"] = mean_and_spread(gains) if gains else None
            entry["better_seeds"] = sum(g > 0 for g in gains)
        summary.append(entry)
    return summary
