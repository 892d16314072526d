"""How processes end: by a signal, in one line; with the process that started them; and with those that they started."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType, TracebackType
from typing import IO, Any, NoReturn

WATCHED = "YOLO_DISTILL_ENDS_WITH_STDIN"
"""Set for a command that shall end as soon as its standard input does, which the process that started it holds."""
GRACE_SECONDS = 2.5
"""What a process gets to end in an orderly way, when the one that started it is gone."""
RETRY_SECONDS = 0.1
"""Until a signal is tried again that came where its exception would have been lost."""
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
    # Python prints and drops an exception in these: finalizers, and what runs around a fork.
    LOSING = ("__del__", "_launch")

    def __init__(self) -> None:
        self._since: float | None = None
        self._process = os.getpid()
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
        if os.getpid() != self._process:  # a worker that has just been forked
            if signum != signal.SIGINT:
                signal.signal(signum, signal.SIG_DFL)
                os.kill(os.getpid(), signum)
            return
        now = time.monotonic()
        if self._since is None and hasattr(signal, "setitimer") and self._would_be_lost(frame):
            signal.signal(signal.SIGALRM, lambda _, later: self._end(signum, later))
            signal.setitimer(signal.ITIMER_REAL, RETRY_SECONDS)
            return
        if self._since is not None:
            if now - self._since > SAME_EVENT_SECONDS:
                os._exit(128 + signum)
            return
        self._since = now
        sys.unraisablehook = lambda unraisable: None  # workers that end too complain in finalizers
        raise KeyboardInterrupt if signum == signal.SIGINT else Terminated(signum)

    def _would_be_lost(self, frame: FrameType | None) -> bool:
        while frame is not None:
            if frame.f_code.co_name in self.LOSING:
                return True
            frame = frame.f_back
        return False


def leave_signals_to_main_process() -> None:
    """For a worker process: Ctrl-C reaches it too, but it is the main process that ends its workers.

    A connection that the main process gives up at its end is no news either.
    """
    sys.excepthook = _quiet_about_connections
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def quiet_about_workers(unraisable: Any) -> None:
    """An unraisablehook: that a loader process was killed is told once, not again by the finalizer of its loader."""
    if "DataLoader worker" not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)


def _quiet_about_connections(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, traceback)


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


def start_child(
    command: Sequence[str], environment: Mapping[str, str] | None = None, output: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """Starts a command line of ours as a process that ends with this one, however this one ends.

    Args:
        command: its words.
        environment: variables beside those of this process.
        output: takes what it says, errors too; by default it speaks where this one does.
    """
    sys.stdout.flush()
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT if output else None,
        env={**os.environ, **(environment or {}), WATCHED: "1"},
    )


def end_children(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ends processes that `start_child` started and that still run: all are asked to, and get the same time for it."""
    for child in children:
        child.terminate()
    until = time.monotonic() + 2 * GRACE_SECONDS
    for child in children:
        try:
            child.wait(max(until - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if child.stdin:
            child.stdin.close()


def run_child(command: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
    """Runs a command line of ours as `start_child` does, and waits for its end.

    Returns:
        Its exit code; negative for the signal that ended it.
    """
    with start_child(command, environment) as child:
        try:
            return child.wait()
        except BaseException:
            end_children([child])
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
    leave_at_once(128 + signal.SIGTERM)  # where the main thread is too busy for the signal


def leave_at_once(code: int) -> NoReturn:
    """Ends this process and its workers without the interpreter's own clearing up, which takes seconds."""
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(code)
