"""A training's folder: options, hyper-parameters, manifest, results table, TensorBoard events, pictures."""

from __future__ import annotations

import csv
import json
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from utils.logging import LOGGER
from utils.paths import increment_path, replacing

ROOT = Path(__file__).resolve().parents[1]


class RunFolder:
    """Files of one training under `path`; every method does nothing where `active` is false.

    Args:
        path: the folder; made when needed.
        active: false in all processes but the first.
    """

    def __init__(self, path: Path, active: bool = True) -> None:
        self.path = path
        self.active = active
        self.weights = path / "weights"
        self.last = self.weights / "last.pt"
        self.best = self.weights / "best.pt"
        if active:
            self.weights.mkdir(parents=True, exist_ok=True)

    @classmethod
    def create(cls, project: str, name: str, exist_ok: bool, active: bool = True) -> RunFolder:
        """A new folder below `project`, numbered when `name` is taken."""
        return cls(increment_path(Path(project) / name, exist_ok), active)

    def write_yaml(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a mapping as yaml, in its own order."""
        if self.active:
            text = yaml.safe_dump(_plain(content), sort_keys=False, allow_unicode=True)
            with replacing(self.path / name) as stream:
                stream.write(text)

    def write_manifest(self, facts: Mapping[str, Any]) -> None:
        """Writes manifest.json: what somebody needs to repeat this run and trust its numbers."""
        if self.active:
            content = {**environment(), **_plain(facts)}
            with replacing(self.path / "manifest.json") as stream:
                stream.write(json.dumps(content, indent=2) + "\n")

    def manifest(self) -> dict[str, Any]:
        """What manifest.json says; nothing where it is missing or damaged."""
        try:
            content = json.loads((self.path / "manifest.json").read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}

    def update_manifest(self, facts: Mapping[str, Any]) -> None:
        """Adds facts to manifest.json; one whose value is None is taken out."""
        if self.active:
            content = {k: v for k, v in {**self.manifest(), **_plain(facts)}.items() if v is not None}
            with replacing(self.path / "manifest.json") as stream:
                stream.write(json.dumps(content, indent=2) + "\n")


class ResultsTable:
    """results.csv, one row an epoch and one column for each loss term and metric.

    The file is written anew with each row, because a term may appear later than the first epoch
    (a distillation that starts after a warm-up), and because a resumed run must drop the rows of an
    epoch that was never finished.
    """

    def __init__(self, path: Path, active: bool = True) -> None:
        self.path = path
        self.active = active
        self.rows: list[dict[str, Any]] = []

    def resume(self, start_epoch: int) -> None:
        """Keeps the rows of the epochs before `start_epoch`."""
        if self.path.is_file():
            with open(self.path, newline="") as stream:
                rows = [{k.strip(): v.strip() for k, v in row.items()} for row in csv.DictReader(stream)]
            self.rows = [row for row in rows if int(row["epoch"]) < start_epoch]

    def add(self, row: Mapping[str, Any]) -> None:
        """Appends an epoch; floats are kept to six significant digits."""
        self.rows.append({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
        if not self.active:
            return
        columns = list(dict.fromkeys(key for each in self.rows for key in each))
        with replacing(self.path) as stream:
            writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)


class EventWriter:
    """TensorBoard scalars; silent when the package is absent or the process is not the first."""

    def __init__(self, path: Path, active: bool = True, purge_step: int | None = None) -> None:
        self.writer = None
        if active:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                LOGGER.info("TensorBoard is not installed: no event files (pip install tensorboard)")
                return
            self.writer = SummaryWriter(str(path), purge_step=purge_step)

    def add(self, row: Mapping[str, Any], step: int) -> None:
        """Writes every number of a row under its own name."""
        if self.writer:
            for name, value in row.items():
                if isinstance(value, int | float) and name != "epoch":
                    self.writer.add_scalar(name, value, step)
            self.writer.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        if self.writer:
            self.writer.close()


def environment() -> dict[str, Any]:
    """Command, revision, versions and hardware of this process."""
    import cv2
    import numpy
    import torch
    import torchvision

    cuda = torch.cuda.is_available()
    return {
        "command": shlex.join(["python", *sys.argv]),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "git_revision": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "numpy": numpy.__version__,
            "opencv": cv2.__version__,
        },
        "hardware": {
            "machine": platform.machine(),
            "system": platform.platform(),
            "threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
        },
    }


def _git(*words: str) -> str | None:
    try:
        answer = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _plain(value: Any) -> Any:
    """Nested mappings and sequences as dicts and lists; anything that is no plain value as its text."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
