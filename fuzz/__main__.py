"""Fuzzes readers.

python -m fuzz READER|all --seconds 600
python -m fuzz READER --input FILE        # reads one input, and lets its error through
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from fuzz.mutation import MUTATIONS
from fuzz.runner import Finding, Outcome, best_engine, keep, keep_large, run
from fuzz.worker import Status

READERS = tuple(MUTATIONS)


def main() -> int:
    """Runs the command; the exit code is 1 where something was found."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Fuzzes the readers of foreign files.")
    parser.add_argument("reader", choices=(*READERS, "all"))
    parser.add_argument("--seconds", type=float, default=600, help="for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=("auto", "atheris", "builtin"), default="auto")
    parser.add_argument("--input", type=Path, help="read this one input, and let its error through")
    parser.add_argument("--no-keep", action="store_true", help="do not put what is found into fuzz/corpus")
    words = parser.parse_args()
    readers = READERS if words.reader == "all" else (words.reader,)
    if words.input is not None:
        read_input(readers[0], words.input)
        return 0
    engine = best_engine() if words.engine == "auto" else words.engine
    if engine == "builtin" and words.engine == "auto":
        print("atheris is not installed (see requirements-fuzz.txt): the built-in loop takes its place")
    found = 0
    for reader in readers:
        outcome = run([reader], words.seconds, words.seed, engine)
        found += len(outcome.findings)
        print(describe(reader, engine, outcome), flush=True)
        for finding in outcome.findings:
            print(describe_finding(finding, kept=not words.no_keep), flush=True)
    return 1 if found else 0


def read_input(reader: str, path: Path) -> None:
    """Reads one input as the fuzzer does, without catching its error."""
    from fuzz.targets import TARGETS

    with tempfile.TemporaryDirectory() as folder:
        TARGETS[reader](Path(folder))(path.read_bytes())
    print(f"{reader} reads {path} as it should")


def describe(reader: str, engine: str, outcome: Outcome) -> str:
    """One line on a run."""
    status = outcome.statuses.get(reader, Status())
    reached = outcome.engine_line or f"{status.novelty} line pairs, {status.pool} inputs kept"
    rate = status.executions / max(status.seconds, 1e-9)
    return (
        f"{reader} ({engine}): {status.executions} inputs, {rate:.0f} a second; "
        f"{reached}; slowest {status.slowest:.2f} s, {status.memory >> 20} MiB, {outcome.restarts} restarts; "
        f"{len(outcome.findings)} findings"
    )


def describe_finding(finding: Finding, kept: bool) -> str:
    """A finding for a person: what, how often, where the input lies, the traceback."""
    path = (keep(finding) or keep_large(finding)) if kept else keep_large(finding)
    lines = finding.report.splitlines()
    shown = lines[-14:] if lines and lines[0].startswith("Traceback") else lines[:40]  # other stacks begin with the end
    report = "\n".join(f"    {line}" for line in shown)
    return f"  {finding.what}\n    {finding.count} inputs, {len(finding.data)} bytes: {path}\n{report}"


if __name__ == "__main__":
    sys.exit(main())
