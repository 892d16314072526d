"""Every input that a reader once failed on, and as many new ones as the time allows: no reader fails."""

from __future__ import annotations

from fuzz.mutation import MUTATIONS
from fuzz.runner import Outcome, run
from fuzz.worker import CANARY, Limits, corpus

SECONDS = 25  # in all, with the start of the process; what is left after the corpus goes into mutations


def told(outcome: Outcome) -> str:
    return "\n".join(
        f"{found.reader}: {found.what}\n{found.data[:500]!r}\n{found.report}" for found in outcome.findings
    )


def test_no_reader_fails() -> None:
    """No traceback, no hang, no gigabyte of memory, no wrong result; the same inputs each time."""
    outcome = run(list(MUTATIONS), SECONDS, seed=0, engine="builtin", coverage=False)
    assert not outcome.findings, told(outcome)
    assert outcome.restarts == 0
    for reader in MUTATIONS:
        assert outcome.statuses[reader].executions > len(corpus(reader))
        assert outcome.statuses[reader].memory < Limits.growth


def test_every_kind_of_fault_is_seen() -> None:
    """The canary raises, hangs, fills the memory and ends its process; the worker goes on after each."""
    limits = Limits(seconds=2, growth=200 << 20)
    outcome = run([CANARY], 0, seed=0, engine="builtin", limits=limits)
    found = {finding.data: finding.what for finding in outcome.findings}
    assert found.pop(b"raise").startswith("KeyError")
    assert found.pop(b"hang").startswith("hangs")
    assert found.pop(b"fill the memory") == "too much memory"
    assert found.pop(b"end the process") == "the process ended with exit code 7"
    assert not found
