"""The process that feeds inputs to readers. What ends it (a hang, a crash, too much memory) is seen by fuzz.runner.

A worker writes three things into its folder: `current`, the input that is being read, `findings/`, and `status.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import hashlib
import json
import logging
import os
import random
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "fuzz/corpus"
CANARY = "canary"
HARD_GROWTH = 4 << 30  # address space above that at the start, so that one input does not take the machine's memory
LARGEST_POOL = 2000
STATUS_SECONDS = 1.0
OUT_OF_MEMORY = 3  # exit code


@dataclass(frozen=True)
class Limits:
    """What one input may take.

    Attributes:
        seconds: a reader that takes longer hangs.
        growth: bytes of memory above those at the start.
    """

    seconds: float = 20.0
    growth: int = 1 << 30


@dataclass
class Status:
    """What a worker did so far, for one reader.

    Attributes:
        executions: inputs read.
        seconds: spent on them.
        novelty: lines, or edges, that were reached.
        pool: inputs that each reached something new.
        slowest: seconds of the slowest input.
        memory: bytes that the process grew by.
    """

    executions: int = 0
    seconds: float = 0.0
    novelty: int = 0
    pool: int = 0
    slowest: float = 0.0
    memory: int = 0


def peak_memory() -> int:
    """The largest resident memory of this process so far, in bytes; 0 where the system does not tell."""
    with contextlib.suppress(
        OSError
    ):  # on Linux the other figure begins with that of the process that started this one
        peak = re.search(rb"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_bytes())
        return int(peak[1]) * 1024 if peak else 0
    try:
        import resource
    except ImportError:
        return 0
    peak_used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak_used if sys.platform == "darwin" else peak_used * 1024


def limit_address_space() -> None:
    """Makes an allocation far beyond the bound fail, on systems that can."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + HARD_GROWTH
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    except (ImportError, OSError, ValueError):
        return


class Session:
    """Feeds one reader, and keeps account of it.

    Args:
        reader: a key of TARGETS.
        folder: where current input, findings and status are written.
        temporary: where the reader's own files go.
        coverage: watch which lines run.
        limits: of one input.
    """

    def __init__(self, reader: str, folder: Path, temporary: Path, coverage: bool, limits: Limits) -> None:
        from fuzz.coverage import LineCoverage

        self.reader, self.folder, self.limits = reader, folder, limits
        place = temporary / reader
        place.mkdir()
        self._target, self.seeds = _target_and_seeds(reader, place)
        self.pool: list[bytes] = []
        self.status = Status()
        self._coverage = LineCoverage() if coverage else None
        self._fatal = fatal_inputs(folder)
        self._start = peak_memory()

    def read(self, data: bytes) -> bool:
        """Reads one input; returns whether it reached something new. What ended a worker before is not read again."""
        if hashlib.sha256(data).hexdigest() in self._fatal:
            return False
        (self.folder / "current").write_bytes(data)
        (self.folder / "reader").write_text(self.reader)
        before = len(self._coverage.seen) if self._coverage else 0
        begin = time.perf_counter()
        faulthandler.dump_traceback_later(self.limits.seconds, exit=True)  # exit code 1, and the traceback on stderr
        try:
            with self._coverage.watching() if self._coverage else contextlib.nullcontext():
                self._target(data)
        except Exception as error:  # everything that is not documented
            save_finding(self.folder, self.reader, data, signature(error), traceback.format_exc(limit=-8))
        finally:
            faulthandler.cancel_dump_traceback_later()
        seconds = time.perf_counter() - begin
        status = self.status
        status.executions += 1
        status.seconds += seconds
        status.slowest = max(status.slowest, seconds)
        status.memory = max(peak_memory() - self._start, 0)
        if status.memory > self.limits.growth:
            report = f"{status.memory >> 20} MiB more than at the start"
            save_finding(self.folder, self.reader, data, "too much memory", report)
            os._exit(OUT_OF_MEMORY)
        status.novelty = len(self._coverage.seen) if self._coverage else 0
        return status.novelty > before

    def keep(self, data: bytes) -> None:
        """Makes an input one that mutations begin with."""
        self.pool.append(data)
        if len(self.pool) > LARGEST_POOL:
            del self.pool[len(self.seeds)]
        self.status.pool = len(self.pool)


def _target_and_seeds(reader: str, folder: Path) -> tuple[Callable[[bytes], None], list[bytes]]:
    if reader == CANARY:
        from fuzz.canary import INPUTS, CanaryTarget

        return CanaryTarget(folder), list(INPUTS)
    from fuzz.seeds import seeds
    from fuzz.targets import TARGETS

    return TARGETS[reader](folder), seeds(reader, folder)


def fatal_inputs(folder: Path) -> set[str]:
    """SHA-256 of the inputs that ended a worker of this run."""
    path = folder / "fatal"
    return set(path.read_text().split()) if path.exists() else set()


def signature(error: BaseException) -> str:
    """What tells one finding from another: the error's class, and the last line of our own code that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(str(ROOT)) and "/fuzz/" not in frame.filename]
    text = re.sub(r"\d+", "N", str(error)[:60]) if type(error).__name__ == "WrongResult" else ""
    if not ours:
        cause = error.__cause__
        place = signature(cause) if cause is not None else "fuzz"
        return f"{type(error).__name__} {text} ({place})"
    return f"{type(error).__name__} {text} at {os.path.relpath(ours[-1].filename, ROOT)}:{ours[-1].lineno}"


def save_finding(folder: Path, reader: str, data: bytes, what: str, report: str) -> None:
    """Keeps an input that a reader failed on, the smallest one of each kind."""
    kind = hashlib.sha256(f"{reader} {what}".encode()).hexdigest()[:16]
    place = folder / "findings"
    place.mkdir(exist_ok=True)
    path = place / f"{kind}.input"
    count = 1
    if path.exists():
        known = json.loads((place / f"{kind}.json").read_text())
        count = known["count"] + 1
        if path.stat().st_size <= len(data):
            data, report = path.read_bytes(), known["report"]
    path.write_bytes(data)
    entry = {"reader": reader, "what": what, "report": report, "count": count}
    (place / f"{kind}.json").write_text(json.dumps(entry))


def write_status(folder: Path, statuses: dict[str, Status]) -> None:
    """Writes what was done so far, as a whole or not at all."""
    temporary = folder / "status.tmp"
    temporary.write_text(json.dumps({reader: asdict(status) for reader, status in statuses.items()}))
    temporary.replace(folder / "status.json")


def corpus(reader: str) -> list[bytes]:
    """The inputs in which something was found once."""
    return [path.read_bytes() for path in sorted((CORPUS / reader).glob("*")) if path.is_file()]


@dataclass
class Plan:
    """A worker's task: the readers, by turns, until the deadline (of time.time)."""

    readers: list[str]
    deadline: float
    seed: int
    folder: Path
    coverage: bool
    limits: Limits


def run_builtin(plan: Plan, temporary: Path) -> None:
    """Replays the corpus, then reads mutations of seeds, corpus and of what reached something new."""
    sessions = {reader: Session(reader, plan.folder, temporary, plan.coverage, plan.limits) for reader in plan.readers}
    limit_address_space()
    for session in sessions.values():
        for data in [*session.seeds, *corpus(session.reader)]:
            session.read(data)
            session.keep(data)
    statuses = {reader: session.status for reader, session in sessions.items()}
    written = 0.0
    for session, rng in _turns(sessions, plan.seed):
        now = time.time()
        if now - written > STATUS_SECONDS:
            write_status(plan.folder, statuses)
            written = now
        if now > plan.deadline:
            break
        from fuzz.mutation import mutate  # not before, as the canary needs none of what it imports

        data = mutate(session.reader, session.pool, rng)
        if session.read(data):
            session.keep(data)
    write_status(plan.folder, statuses)


def _turns(sessions: dict[str, Session], seed: int) -> Iterator[tuple[Session, random.Random]]:
    """The readers by turns, each with the random generator of its own; one that is slow gets fewer."""
    generators = {reader: random.Random(f"{seed} {reader}") for reader in sessions}
    while True:
        reader = min(sessions, key=lambda name: sessions[name].status.seconds)
        yield sessions[reader], generators[reader]


def run_atheris(plan: Plan, temporary: Path) -> None:
    """The same for one reader, with inputs chosen by libFuzzer from the edges that each reaches, and our mutations."""
    import atheris

    (reader,) = plan.readers
    with atheris.instrument_imports(include=["data", "engine", "models", "utils"]):
        session = Session(reader, plan.folder, temporary, False, plan.limits)
    from fuzz.mutation import mutate_once
    from fuzz.scalars import LARGEST_INPUT

    for data in session.seeds:  # what is imported on first use is imported without libFuzzer, which makes it slow
        session.read(data)
    limit_address_space()
    begin = temporary / "begin"
    begin.mkdir()
    for number, data in enumerate([*session.seeds, *corpus(reader)]):
        (begin / str(number)).write_bytes(data)
    written = 0.0

    def read(data: bytes) -> None:
        nonlocal written
        session.read(data)
        if time.time() - written > STATUS_SECONDS:
            written = time.time()
            write_status(plan.folder, {reader: session.status})

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        changed = atheris.Mutate(data, most) if rng.random() < 0.1 else mutate_once(reader, data, rng)
        return changed[:most]

    seconds = max(int(plan.deadline - time.time()), 1)
    limits = f"-timeout=0 -rss_limit_mb=0 -artifact_prefix={temporary}/"  # we have our own, which end nothing else
    size = f"-max_len={LARGEST_INPUT} -len_control=0"
    flags = [f"-max_total_time={seconds}", f"-seed={plan.seed + 1}", *limits.split(), *size.split()]
    atheris.Setup([sys.argv[0], *flags, str(begin)], read, custom_mutator=mutate)
    atheris.Fuzz()


def main() -> None:
    """Runs one worker; see fuzz.runner."""
    parser = argparse.ArgumentParser(prog="python -m fuzz.worker")
    parser.add_argument("readers", nargs="+")
    parser.add_argument("--deadline", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--engine", choices=("atheris", "builtin"), required=True)
    parser.add_argument("--coverage", action="store_true")
    parser.add_argument("--input-seconds", type=float, default=Limits.seconds)
    parser.add_argument("--growth", type=int, default=Limits.growth)
    words = parser.parse_args()
    faulthandler.enable()
    logging.disable(logging.CRITICAL)
    limits = Limits(words.input_seconds, words.growth)
    plan = Plan(words.readers, words.deadline, words.seed, words.folder, words.coverage, limits)
    temporary = Path(tempfile.mkdtemp(dir=words.folder))  # which is removed by the process that started this one
    os.environ["XDG_CACHE_HOME"] = str(temporary / "cache")
    (run_atheris if words.engine == "atheris" else run_builtin)(plan, temporary)


if __name__ == "__main__":
    main()
