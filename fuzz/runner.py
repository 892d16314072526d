"""Runs workers until the time is up, starts another where one ended early, and gathers what they found."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fuzz.worker import CORPUS, OUT_OF_MEMORY, ROOT, Limits, Status, save_finding

LARGEST_KEPT = 16 << 10  # bytes of an input that goes into the corpus by itself
MOST_REPLAYS = 10  # of the corpus after the deadline, where inputs of it end their workers
GRACE_SECONDS = 60.0  # beyond the deadline, for a slow start


@dataclass(frozen=True)
class Finding:
    """An input that a reader did not survive, or survived with a wrong result.

    Attributes:
        reader: who read it.
        what: the kind of error, and where it came from.
        report: the traceback, or what else is known.
        data: the smallest input of this kind.
        count: inputs of this kind that were met.
    """

    reader: str
    what: str
    report: str
    data: bytes
    count: int

    @property
    def file_name(self) -> str:
        """What the input is called in the corpus."""
        return hashlib.sha256(self.data).hexdigest()[:16]


@dataclass
class Outcome:
    """What a run of one or several readers came to."""

    statuses: dict[str, Status] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    restarts: int = 0
    engine_line: str = ""  # the last line of libFuzzer's own account


def best_engine() -> str:
    """atheris where it is installed, else the built-in loop."""
    return "atheris" if importlib.util.find_spec("atheris") else "builtin"


def run(
    readers: Sequence[str], seconds: float, seed: int, engine: str, coverage: bool = True, limits: Limits | None = None
) -> Outcome:
    """Fuzzes readers for some time, the corpus first.

    Args:
        readers: keys of fuzz.targets.TARGETS; one alone with atheris.
        seconds: in all, with the start of the process.
        seed: the same one gives the same inputs in the same order, with the built-in loop.
        engine: atheris or builtin.
        coverage: whether the built-in loop watches which lines run, to begin with what reached new ones.
        limits: of one input.
    """
    deadline, limits = time.time() + seconds, limits or Limits()
    words = [*readers, "--deadline", str(deadline), "--engine", engine, *(["--coverage"] if coverage else [])]
    words += ["--input-seconds", str(limits.seconds), "--growth", str(limits.growth)]
    outcome = Outcome()
    with tempfile.TemporaryDirectory(prefix="fuzz-run-") as name:
        folder = Path(name)
        while True:
            left = max(deadline - time.time(), 0) + limits.seconds + GRACE_SECONDS
            code = _run_worker([*words, "--seed", str(seed + outcome.restarts)], left, folder)
            _add_statuses(outcome, folder)
            if code == 0 or (time.time() > deadline and outcome.restarts >= MOST_REPLAYS):
                break
            outcome.restarts += 1
        outcome.findings = gather(folder / "findings")
        log = (folder / "log").read_text(errors="replace")
        lines = re.findall(r"cov: \d+ ft: \d+ corp: \d+", log)
        outcome.engine_line = lines[-1] if lines else ""
    return outcome


def _run_worker(words: list[str], seconds: float, folder: Path) -> int:
    """Runs one worker to its end; an end that it did not choose is a finding. Returns its exit code."""
    command = [sys.executable, "-m", "fuzz.worker", *words, "--folder", str(folder)]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    current = folder / "current"
    current.unlink(missing_ok=True)
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)
        try:
            code = process.wait(seconds)
        except BaseException:
            process.kill()
            code = process.wait()
            if not isinstance(sys.exc_info()[1], subprocess.TimeoutExpired):
                raise
    text = (folder / "log").read_text(errors="replace")
    if code:
        if not current.exists():
            raise RuntimeError(f"the worker did not start:\n{text[-3000:]}")
        data = current.read_bytes()
        with open(folder / "fatal", "a") as fatal:
            fatal.write(f"{hashlib.sha256(data).hexdigest()}\n")
        if code != OUT_OF_MEMORY:
            save_finding(folder, (folder / "reader").read_text(), data, _kind_of_end(code, text), _end_of(text))
    return code


def _end_of(log: str) -> str:
    """What a log says of the end of its process: a stack with the latest call first, or its last lines."""
    start = max(log.rfind("Timeout ("), log.rfind("Fatal Python error"), log.rfind("Traceback (most recent"))
    return log[start:][:6000] if start >= 0 else log[-6000:]


def _kind_of_end(code: int, log: str) -> str:
    if "Timeout (" not in log:
        return f"the process ended with exit code {code}"
    stack = re.findall(r'File "([^"]+)", line (\d+) in (\w+)', log[log.rindex("Timeout (") :])
    ours = [frame for frame in stack if frame[0].startswith(str(ROOT)) and "/fuzz/" not in frame[0]]
    place = f" in {ours[0][2]} ({os.path.relpath(ours[0][0], ROOT)}:{ours[0][1]})" if ours else ""
    return f"hangs{place}"


def _add_statuses(outcome: Outcome, folder: Path) -> None:
    path = folder / "status.json"
    if not path.exists():
        return
    for reader, values in json.loads(path.read_text()).items():
        total, more = outcome.statuses.setdefault(reader, Status()), Status(**values)
        total.executions += more.executions
        total.seconds += more.seconds
        for name in ("novelty", "pool", "slowest", "memory"):
            setattr(total, name, max(getattr(total, name), getattr(more, name)))
    path.unlink()


def gather(folder: Path) -> list[Finding]:
    """The findings that a worker wrote."""
    found = []
    for path in sorted(folder.glob("*.json")):
        entry = json.loads(path.read_text())
        found.append(Finding(**entry, data=path.with_suffix(".input").read_bytes()))
    return found


def keep(finding: Finding, folder: Path = CORPUS) -> Path | None:
    """Puts a finding's input into the corpus; None where it is too large to be kept in the repository."""
    if len(finding.data) > LARGEST_KEPT:
        return None
    path = folder / finding.reader / finding.file_name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(finding.data)
    return path


def keep_large(finding: Finding) -> Path:
    """Puts a large input where it outlives the run."""
    path = Path(tempfile.gettempdir()) / f"fuzz-{finding.reader}-{finding.file_name}"
    path.write_bytes(finding.data)
    shutil.copystat(__file__, path)
    return path
