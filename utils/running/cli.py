"""What every command line shares: the parser of its flags and how it ends. Light, so that --help is instant."""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from utils.errors import UsageError, nearest
from utils.running.explain import advice, explain
from utils.running.processes import (
    SignalsAsExceptions,
    Terminated,
    causes,
    end_with_parent,
    is_watched,
    leave_at_once,
    quiet_about_workers,
)
from utils.text import printable, shown

BROKEN_PIPE = 128 + 13  # what a shell makes of SIGPIPE
SIGNALLED = (128 + 1, 128 + 2, 128 + 15)  # by SIGHUP, SIGINT, SIGTERM
UNKNOWN_FLAGS = "unrecognized arguments: "
MAX_MESSAGE = 400  # characters of argparse's own, which repeat what was given
# The ranges that flags of the same meaning have in every program.
LEAST_PIXELS, MOST_PIXELS = 32, 16384  # of an image's side; OpenCV draws and warps up to 32767
MOST_IMAGES = 65536  # in a batch
MOST_BOXES = 100_000  # of an image
MOST_PROCESSES = 1024
MOST_SEED = 2**32 - 1


class CommandParser(argparse.ArgumentParser):
    """A parser whose complaints are one line each, as every other mistake's, instead of the usage of all flags."""

    def error(self, message: str) -> NoReturn:
        """Raises the UsageError of a mistake in the flags; for an unknown flag it names the nearest known one."""
        remedy = f"{self.prog} --help lists the flags"
        if message.startswith(UNKNOWN_FLAGS):
            flag = message.removeprefix(UNKNOWN_FLAGS).split()[0]
            guess = nearest(flag, self._option_string_actions)
            remedy = f"did you mean {guess}? ({remedy})" if guess else remedy
        raise UsageError(f"{printable(message, MAX_MESSAGE)}; {remedy}")


def check_range(flag: str, value: float, least: float, most: float = math.inf) -> None:
    """Raises the UsageError of a number that a flag does not take; one that is no number (nan) among them."""
    if not value >= least:
        raise UsageError(f"{flag} must be at least {least}, got {shown(value)}")
    if value > most:
        raise UsageError(f"{flag} must be at most {most}, got {shown(value)}")


def check_share(flag: str, value: float) -> None:
    """Raises the UsageError of a number that is no share or confidence."""
    if not 0 <= value <= 1:
        raise UsageError(f"{flag} must be from 0 to 1, got {shown(value)}")


def check_pixels(flag: str, value: int) -> None:
    """Raises the UsageError of a side that no image has."""
    if value < LEAST_PIXELS:
        raise UsageError(f"{flag} must be at least {LEAST_PIXELS} pixels, got {shown(value)}")
    if value > MOST_PIXELS:
        raise UsageError(f"{flag} must be at most {MOST_PIXELS} pixels, got {shown(value)}")


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Runs a command and ends the process with its exit code.

    A mistake of the user's is one line on stderr, and so is a signal or a full disk; an unexpected exception keeps its
    traceback. The exit code is what `main` returns, the error's own, 1 for a full disk or full memory, or 128 and the
    number of the signal: 130 for Ctrl-C, 143 for SIGTERM, 141 where nobody reads the output any more. A command that
    another one has started by `run_child` ends with it.

    Args:
        main: the command; parses `sys.argv` itself and may return an exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal's encoding lacks must not end a training
            stream.reconfigure(errors="backslashreplace")
    sys.unraisablehook = quiet_about_workers
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # what it cannot read is said here, with the file's name
    end_with_parent()
    with SignalsAsExceptions():
        code = _ending(main)
        if is_watched() and code in SIGNALLED:
            leave_at_once(code)
        sys.exit(code)


def _ending(main: Callable[[], int | None]) -> Any:
    """Runs a command; its exit code. Raises what keeps its traceback."""
    try:
        try:
            return main() or 0
        finally:
            if sys.stdout:
                sys.stdout.flush()  # not left to the interpreter, which would end in a traceback
    except SystemExit as error:  # --help
        return error.code
    except BaseException as error:
        code = _report(error)
        if code is None:
            raise
        return code


def _report(error: BaseException) -> int | None:
    """Says in one line why a command ends; the exit code, or None for an error that keeps its traceback."""
    for each in causes(error):
        if isinstance(each, KeyboardInterrupt | Terminated):
            signum = signal.SIGINT if isinstance(each, KeyboardInterrupt) else each.signum
            name = "interrupted" if signum == signal.SIGINT else f"ended by {signal.Signals(signum).name}"
            first = os.environ.get("RANK", "0") == "0"  # of the processes of torchrun, which all are told
            if first:
                _complain(name if is_watched() else name + advice(error))
            return 128 + int(signum)
    if isinstance(error, BrokenPipeError):  # `... | head` has seen enough
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return BROKEN_PIPE
    line = explain(error)
    if not line:
        return None
    _complain(f"error: {line}")
    return int(getattr(error, "exit_code", 1))


def _complain(line: str) -> None:
    """Prints a line to stderr, below a progress bar that may stand there."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # nobody reads it
        sys.stdout.flush()
    with contextlib.suppress(OSError, ValueError):
        print(printable(line), file=sys.stderr, flush=True)
