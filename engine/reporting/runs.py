"""What a training left in its folder, as a report tells it: curve, length, time, and what is needed to repeat it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.runfolder import RunFolder
from utils.paths import file_hash
from utils.plots import read_columns

STILL_RISING = 0.005
"""AP that a curve may rise over its last fifth and count as level."""


@dataclass(frozen=True)
class RunFacts:
    """A training.

    Attributes:
        folder: of the run.
        weights: the checkpoint that the report measures.
        columns: of results.csv; empty where it cannot be read.
        manifest: of the run; empty where there is none.
    """

    folder: Path
    weights: Path
    columns: Mapping[str, np.ndarray]
    manifest: Mapping[str, Any]

    @property
    def curve(self) -> tuple[list[float], list[float]]:
        """Epochs, from 1, that were validated, and the AP of each."""
        if not {"epoch", "metrics/AP"} <= set(self.columns):
            return [], []
        known = [(e + 1, v) for e, v in zip(self.columns["epoch"], self.columns["metrics/AP"]) if math.isfinite(v)]
        return [float(e) for e, _ in known], [float(v) for _, v in known]

    @property
    def seconds(self) -> float:
        """Time of all epochs, validation included; NaN where unknown."""
        times = self.columns.get("time/epoch")
        return math.nan if times is None else float(np.nansum(times))

    @property
    def rise(self) -> float:
        """What AP has risen by over the last fifth of the epochs; 0 where too little is known."""
        epochs, values = self.curve
        if len(values) < 3:
            return 0.0
        before = [v for e, v in zip(epochs, values) if e <= 0.8 * epochs[-1]]
        return values[-1] - before[-1] if before else 0.0

    @property
    def converged(self) -> bool:
        """Whether the best epoch lies before the last tenth, or AP was level by the end."""
        epochs, values = self.curve
        if not values:
            return True
        return epochs[int(np.argmax(values))] <= 0.9 * epochs[-1] or self.rise <= STILL_RISING

    @property
    def forced(self) -> list[str]:
        """What the gate held against teachers that taught all the same: file and fault, one a teacher."""
        gate = self.manifest.get("gate")
        entries = [each for each in gate if isinstance(each, Mapping)] if isinstance(gate, list) else []
        return [f"{each.get('path')}: {each.get('problem')}" for each in entries if each.get("forced")]

    @property
    def threads(self) -> int | None:
        """Threads of the training where it ran on the processors alone; None where it had a GPU, or nothing says."""
        hardware = self.manifest.get("hardware")
        if not isinstance(hardware, Mapping) or hardware.get("gpus"):
            return None
        number = hardware.get("threads")
        return number if isinstance(number, int) else None

    def lines(self) -> Iterator[tuple[str, str]]:
        """What is needed to repeat the training, title by title."""
        manifest = self.manifest
        yield "weights", f"{self.weights}  sha256 {file_hash(self.weights)[:16]}"
        if manifest.get("command"):
            yield "command", str(manifest["command"])
        dirty = " with changes" if manifest.get("git_dirty") else ""
        if manifest.get("git_revision"):
            yield "revision", f"{manifest['git_revision']}{dirty}"
        for key in ("teacher", "start", "init"):
            facts = manifest.get(key)
            if isinstance(facts, Mapping) and facts.get("sha256"):
                yield key, f"{facts.get('path')}  sha256 {str(facts['sha256'])[:16]}"
        hashes = [
            f"{name} {str(manifest[f'{name}_hash'])[:16]}" for name in ("train", "val") if f"{name}_hash" in manifest
        ]
        if hashes:
            yield "data", f"{manifest.get('data')}  {', '.join(hashes)}"
        hardware = manifest.get("hardware")
        if isinstance(hardware, Mapping):
            gpus = ", ".join(map(str, hardware.get("gpus") or ())) or "no GPU"
            yield "hardware", f"{hardware.get('machine')}, {hardware.get('threads')} thread(s), {gpus}"


def read_run(weights: Path) -> RunFacts:
    """The facts of the training whose folder a checkpoint lies in; of a file that lies in none, what there is."""
    folder = weights.parent.parent
    try:
        columns = read_columns(folder / "results.csv")
    except (OSError, ValueError):
        columns = {}
    return RunFacts(folder, weights, columns, RunFolder(folder, active=False).manifest())


def describe_seconds(seconds: float) -> str:
    """A time as people say it."""
    if not math.isfinite(seconds):
        return "-"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
