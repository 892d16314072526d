"""A training's folder: options, hyper-parameters, manifest, results table, TensorBoard events, pictures."""

from __future__ import annotations

import csv
import itertools
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from utils.files import write_json
from utils.logging import LOGGER
from utils.paths import REPOSITORY, replacing, run_path
from utils.running.folders import FolderLock, claim_folder, remove_run_drafts
from utils.running.processes import is_watched
from utils.text import printable

ORPHAN_SECONDS = 10


class RunFolder:
    """Files of one training under `path`; every method does nothing where `active` is false.

    Args:
        path: the folder; made when needed.
        active: false in all processes but the first.
    """

    def __init__(self, path: Path, active: bool = True) -> None:
        self.path = path
        self.active = active
        self._lock: FolderLock | None = None
        self.weights = path / "weights"
        self.last = self.weights / "last.pt"
        self.best = self.weights / "best.pt"
        if active:
            self.weights.mkdir(parents=True, exist_ok=True)

    @classmethod
    def create(cls, project: str, name: str, exist_ok: bool, active: bool = True) -> RunFolder:
        """A new folder below `project`, numbered when `name` is taken, and locked until `release` or the process's end.

        Raises:
            UserError: another process is writing into that very folder (with `exist_ok`).
        """
        path = run_path(project, name)
        if not active:
            return cls(path, active)
        run = cls(claim_folder(path, exist_ok))
        # What else holds the folder of a comparison's training is one of a killed comparison, which ends by itself.
        run._lock = FolderLock(run.path, patience=ORPHAN_SECONDS if is_watched() else 0)
        remove_run_drafts(run.path)
        return run

    def release(self) -> None:
        """Lets other processes write into the folder."""
        if self._lock:
            self._lock.release()

    def write_yaml(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a mapping as yaml, in its own order."""
        if self.active:
            text = yaml.safe_dump(_plain(content), sort_keys=False, allow_unicode=True)
            with replacing(self.path / name) as stream:
                stream.write(text)

    def write_lines(self, name: str, lines: Sequence[str]) -> None:
        """Writes lines of text."""
        if self.active:
            with replacing(self.path / name) as stream:
                stream.write("\n".join(lines) + "\n")

    def write_manifest(self, facts: Mapping[str, Any]) -> None:
        """Writes manifest.json: what somebody needs to repeat this run and trust its numbers."""
        if self.active:
            write_json(self.path / "manifest.json", {**environment(), **_plain(facts)})

    def manifest(self) -> dict[str, Any]:
        """What manifest.json says; nothing where it is missing or damaged."""
        path = self.path / "manifest.json"
        try:
            content = json.loads(path.read_bytes()) if path.is_file() else {}
        except (OSError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}

    def update_manifest(self, facts: Mapping[str, Any]) -> None:
        """Adds facts to manifest.json; one whose value is None is taken out."""
        if self.active:
            content = {k: v for k, v in {**self.manifest(), **_plain(facts)}.items() if v is not None}
            write_json(self.path / "manifest.json", content)


class ResultsTable:
    """results.csv, one row an epoch and one column for each loss term and metric.

    The file is written anew with each row, because a term may appear later than the first epoch
    (a distillation that starts after a warm-up), and because a resumed run must drop the rows of an
    epoch that was never finished. Whatever becomes of the file, the training goes on.
    """

    MAX_BYTES = 1 << 26
    """More than the table of any training; a larger file is not read."""

    def __init__(self, path: Path, active: bool = True) -> None:
        self.path = path
        self.active = active
        self.rows: list[dict[str, Any]] = []
        self._told = False

    def resume(self, start_epoch: int) -> None:
        """Keeps the rows of the epochs before `start_epoch`; sets a damaged file aside and says which rows are lost."""
        if not self.active:
            return
        rows, damage = self._read()
        self.rows = [rows[epoch] for epoch in sorted(rows) if epoch < start_epoch]
        lost = [epoch + 1 for epoch in range(start_epoch) if epoch not in rows]
        if not damage and not lost:
            return
        told = f"warning: {self.path} {damage or 'lacks epochs'}"
        if lost:
            told += f"; {len(lost)} of {start_epoch} rows are lost, first that of epoch {lost[0]}"
        if damage:
            told += self._set_aside()
        LOGGER.warning(f"{told}; the training itself goes on unchanged")

    def last_row(self) -> dict[str, Any]:
        """The row of the latest epoch in the file; nothing where there is none that can be used."""
        rows, _ = self._read()
        return rows[max(rows)] if rows else {}

    def _read(self) -> tuple[dict[int, dict[str, Any]], str]:
        """The rows that can be used by their epoch, and what is wrong with the file."""
        if not os.path.lexists(self.path):
            return {}, ""
        if not self.path.is_file():
            return {}, "is not a file"
        try:
            if self.path.stat().st_size > self.MAX_BYTES:
                return {}, "is too large for a table of epochs"
            text = self.path.read_bytes().decode("utf-8-sig", errors="replace")
        except OSError as error:
            return {}, f"cannot be read ({error.strerror})"
        lines = [line for line in re.split("\r?\n", text) if line.strip()]
        columns = _cells(lines[0]) if lines else []
        if columns.count("epoch") != 1 or len(set(columns)) < len(columns) or not lines[0].isprintable():
            return {}, "is damaged: its first line is not that of a results table"
        if not text.endswith("\n"):  # the last cell may be cut short, though a number still
            lines[-1] = ""
        rows: dict[int, dict[str, Any]] = {}
        bad = 0
        for line in lines[1:]:
            row = _numbers(columns, _cells(line))
            bad += row is None or int(row["epoch"]) in rows
            if row:
                rows[int(row["epoch"])] = row
        return rows, f"is damaged: {bad} of its {len(lines) - 1} rows cannot be used" if bad else ""

    def _set_aside(self) -> str:
        names = (f"{self.path.name}.damaged{number if number > 1 else ''}" for number in itertools.count(1))
        aside = next(path for name in names if not os.path.lexists(path := self.path.with_name(name)))
        try:
            os.replace(self.path, aside)
        except OSError:
            return ""
        return f"; it is kept as {aside.name}"

    def add(self, row: Mapping[str, Any]) -> None:
        """Appends an epoch; floats are kept to six significant digits."""
        self.rows.append({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
        if not self.active:
            return
        columns = list(dict.fromkeys(key for each in self.rows for key in each))
        try:
            with replacing(self.path) as stream:
                writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
                writer.writeheader()
                writer.writerows(self.rows)
        except OSError as error:  # the rows stay here, and are all written with the next epoch's
            if not self._told:
                LOGGER.warning(f"warning: {self.path} cannot be written ({error.strerror}); the training goes on")
            self._told = True


def _cells(line: str) -> list[str]:
    """The cells of a line; of a damaged one too, where a lone quote would otherwise reach into the next lines."""
    try:
        return [cell.strip() for cell in next(csv.reader([line]), [])]
    except csv.Error:
        return []


def _numbers(columns: list[str], cells: list[str]) -> dict[str, Any] | None:
    """A row of a results table; None where it is cut short, has too many cells or holds something else than numbers."""
    if len(cells) != len(columns):
        return None
    row: dict[str, Any] = dict(zip(columns, cells))
    try:
        for cell in row.values():
            float(cell or 0)
    except ValueError:
        return None
    return row if re.fullmatch(r"[0-9]{1,9}", row["epoch"]) else None


class EventWriter:
    """TensorBoard scalars; silent in all processes but the first. Where they cannot be written the training goes on."""

    def __init__(self, path: Path, active: bool = True, purge_step: int | None = None) -> None:
        self.writer = None
        if active:
            try:
                from torch.utils.tensorboard import SummaryWriter

                self.writer = SummaryWriter(str(path), purge_step=purge_step)
            except ImportError:
                LOGGER.info("TensorBoard is not installed: no event files (pip install tensorboard)")
            except (OSError, UnicodeError, AttributeError, TypeError) as error:  # the latter: packages that do not fit
                self._give_up(error)

    def add(self, row: Mapping[str, Any], step: int) -> None:
        """Writes every number of a row under its own name."""
        if self.writer:
            try:
                for name, value in row.items():
                    if isinstance(value, int | float) and name != "epoch":
                        self.writer.add_scalar(name, value, step)
                self.writer.flush()
            except OSError as error:
                self._give_up(error)

    def close(self) -> None:
        """Flushes and closes the file."""
        if self.writer:
            try:
                self.writer.close()
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        LOGGER.warning(f"warning: no TensorBoard events ({printable(error, 120)}); the training goes on")
        self.writer = None


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
        answer = subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True, timeout=10)
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
