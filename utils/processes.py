"""How processes end: by a signal, in one line; with the process that started them; and with those that they started."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

WATCHED = "YOLO_DISTILL_ENDS_WITH_STDIN"
"""Set for a command that shall end as soon as its standard input does, which the process that started it holds."""
GRACE_SECONDS = 2.5
"""What a process gets to end in an orderly way, when the one that started it is gone."""
SAME_EVENT_SECONDS = 1.0
"""Signals within this time are one wish: a terminal's Ctrl-C, and what a starting process makes of it."""


class Terminated(BaseException):
    """A signal asks this process to end, as KeyboardInterrupt does for Ctrl-C.

    Attributes:
        signum: the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def advise(error: BaseException, remedy: str) -> None:
    """Notes how the user goes on after an error that no mistake of theirs has caused; the outermost advice counts."""
    if remedy:
        error.remedy = remedy  # type: ignore[attr-defined]


class SignalsAsExceptions:
    """Makes SIGINT, SIGTERM and SIGHUP exceptions of the main thread, so that what is open is closed.

    A later signal ends the process at once. A signal that is ignored (nohup) or handled by others stays so. Outside the
    `with` block all is as it was.
    """

    NAMES = ("SIGINT", "SIGTERM", "SIGHUP")

    def __init__(self) -> None:
        self._since: float | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> SignalsAsExceptions:
        if threading.current_thread() is not threading.main_thread():
            return self
        for name in self.NAMES:
            signum = getattr(signal, name, None)
            if signum is not None and signal.getsignal(signum) in (signal.SIG_DFL, signal.default_int_handler):
                self._before[signum] = signal.signal(signum, self._end)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _end(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._since is not None:
            if now - self._since > SAME_EVENT_SECONDS:
                os._exit(128 + signum)
            return
        self._since = now
        raise KeyboardInterrupt if signum == signal.SIGINT else Terminated(signum)


def leave_signals_to_main_process() -> None:
    """For a worker process: Ctrl-C reaches it too, but it is the main process that ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and all that it was raised from or in the handling of, the outermost first."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop(0)
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            waiting += [each.__cause__, each.__context__]
            yield each


def run_child(command: Sequence[str]) -> int:
    """Runs a command line of ours as a process that ends with this one, however this one ends.

    Returns:
        Its exit code; negative for the signal that ended it.
    """
    sys.stdout.flush()
    with subprocess.Popen(command, stdin=subprocess.PIPE, env={**os.environ, WATCHED: "1"}) as child:
        try:
            return child.wait()
        except BaseException:
            child.terminate()
            try:
                child.wait(2 * GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
            raise


def end_with_parent() -> None:
    """Ends this process within seconds of the one that started it by `run_child`; does nothing otherwise."""
    if os.environ.pop(WATCHED, ""):
        threading.Thread(target=_wait_for_parent, args=(0,), daemon=True, name=WATCHED).start()


def is_watched() -> bool:
    """Whether another command of ours has started this one, and speaks for both."""
    return any(thread.name == WATCHED for thread in threading.enumerate())


def _wait_for_parent(descriptor: int) -> None:
    try:
        while os.read(descriptor, 1):
            pass
    except OSError:
        return
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    for child in multiprocessing.active_children():  # of a main thread that is too busy for the signal
        child.kill()
    os._exit(128 + signal.SIGTERM)
