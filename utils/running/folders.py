"""Folders that one process writes: made by one only, and locked until it is done or dead."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import UsageError, UserError
from utils.logging import LOGGER
from utils.paths import remove_dead_drafts
from utils.text import printable, shown_path

LOCK_FILE = ".lock"
MAX_HOLDER = 4096  # bytes that are read of a lock file
MAX_COMMAND_SHOWN = 200


def claim_folder(path: str | Path, exist_ok: bool = False) -> Path:
    """Makes the next free run folder: `exp`, then `exp2`, `exp3`, ... one past the highest that exists.

    Of several processes that ask at the same instant each gets a folder of its own.

    Args:
        path: the wanted folder, such as runs/train/exp.
        exist_ok: take `path` itself even when it exists.

    Raises:
        UsageError: the path ends in no name.
        OSError: the folder cannot be made; names it.
    """
    path = Path(path)
    if path.name in ("", ".."):
        raise UsageError(f"{shown_path(path)} is no name for a folder; choose another --project or --name")
    if exist_ok:
        path.mkdir(parents=True, exist_ok=True)
        return path
    for number in itertools.count(_next_number(path)):
        folder = path if number == 1 else path.with_name(f"{path.name}{number}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.mkdir()  # the claim: it fails where the folder is there, whoever made it
        except FileExistsError:
            continue
        return folder
    raise AssertionError("an endless count has ended")


def _next_number(path: Path) -> int:
    """1 while the plain name is free, then one past the highest number that exists."""
    if not os.path.lexists(path):
        return 1
    pattern = re.compile(re.escape(path.name) + r"(\d{1,18})$")
    matches = (pattern.match(sibling) for sibling in os.listdir(path.parent))
    return max((int(match.group(1)) for match in matches if match), default=1) + 1


class FolderLock:
    """The right to write into a folder, until `release` or the end of the process, however that comes about.

    A process may take the same folder several times. The lock is the operating system's own on the file `.lock`, one
    that forked loader workers do not inherit: it is gone the moment the process is, even a killed one. Where the file
    system has no locks, a warning is all.

    Args:
        folder: an existing folder.
        remedy: what to do instead, for the message.
        patience: seconds to wait for another process to end.

    Raises:
        UserError: another process is writing into the folder; names it.
        OSError: the lock file cannot be made.
    """

    # The system counts such locks by process, so the process must know what it holds: closing a second descriptor of
    # a locked file would give the lock up.
    _held: dict[tuple[int, str], tuple[int, int]] = {}  # (process, folder) -> (descriptor, times taken)

    def __init__(self, folder: str | Path, remedy: str = "", patience: float = 0) -> None:
        self.folder = Path(folder)
        self._key = (os.getpid(), os.path.realpath(folder))
        self._mine = True
        atexit.register(self.release)  # what an error leaves locked
        if self._key in self._held:
            descriptor, times = self._held[self._key]
            self._held[self._key] = (descriptor, times + 1)
            return
        path, until = self.folder / LOCK_FILE, time.monotonic() + patience
        while (locked := _locked_file(path)) is None and time.monotonic() < until:
            time.sleep(0.1)
        if locked is None:
            raise UserError(_refusal(self.folder, remedy))
        self._held[self._key] = (locked, 1)
        _write_holder(locked)

    def release(self) -> None:
        """Gives the folder free, unless it is still needed otherwise in this process; may be called again."""
        if not self._mine or self._key not in self._held or self._key[0] != os.getpid():
            return
        self._mine = False
        atexit.unregister(self.release)
        descriptor, times = self._held.pop(self._key)
        if times > 1:
            self._held[self._key] = (descriptor, times - 1)
            return
        with contextlib.suppress(OSError):  # Windows removes no open file; gone before the lock is, so nobody gets both
            (self.folder / LOCK_FILE).unlink()
        os.close(descriptor)

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()


@contextmanager
def output_folder(path: str | Path, exist_ok: bool = False, active: bool = True, remedy: str = "") -> Iterator[Path]:
    """A claimed and locked folder for a command's results; one that stays empty because of an error is removed.

    Args:
        path: the wanted folder.
        exist_ok: take `path` itself even when it exists.
        active: false in all processes but the first, which only learn the path.
        remedy: what to do where another process writes into it.

    Raises:
        UserError: another process is writing into it.
    """
    path = Path(path)
    if not active:
        yield path
        return
    new = [each for each in (path, *path.parents) if not os.path.lexists(each)]
    folder = claim_folder(path, exist_ok)
    try:
        with FolderLock(folder, remedy):
            remove_run_drafts(folder)
            yield folder
    except BaseException:
        made = [folder] if path in new or not exist_ok else []
        with contextlib.suppress(OSError):  # the first that holds something ends it
            for each in (*made, *(parent for parent in new if parent != path)):
                each.rmdir()
        raise


def remove_run_drafts(folder: Path) -> None:
    """Removes what killed processes left half written in a run folder and in the folders right below it."""
    remove_dead_drafts(folder)
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                remove_dead_drafts(entry.path)


def _locked_file(path: Path) -> int | None:
    """A descriptor of the locked file, or None where another process has it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        try:
            got = _lock(descriptor)
            if got and _same_file(descriptor, path):
                return descriptor
        except OSError as error:
            LOGGER.warning(
                f"warning: {path} cannot be locked ({error.strerror}); take care that nothing else writes there"
            )
            return descriptor
        os.close(descriptor)
        if not got:
            return None


def _lock(descriptor: int) -> bool:
    """Locks a file; False where another process has locked it.

    Raises:
        OSError: the file system cannot do it.
    """
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, MAX_HOLDER, os.SEEK_SET)  # beyond the text, which others then can read
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _same_file(descriptor: int, path: Path) -> bool:
    """Whether a path still leads to an open file, which its last holder may have removed just now."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _write_holder(descriptor: int) -> None:
    holder = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "command": " ".join(sys.argv)[:MAX_COMMAND_SHOWN],
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    with contextlib.suppress(OSError):  # a full disk: the lock holds without it
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, json.dumps(holder).encode()[:MAX_HOLDER])


def _refusal(folder: Path, remedy: str) -> str:
    """Who has the folder, and what to do."""
    try:
        with open(folder / LOCK_FILE, "rb") as stream:
            holder = json.loads(stream.read(MAX_HOLDER))
        elsewhere = f" on {printable(holder['host'], 64)}" if holder["host"] != socket.gethostname() else ""
        command = printable(holder["command"], MAX_COMMAND_SHOWN)
        who = f"process {int(holder['process'])}{elsewhere} ({command}) since {printable(holder['since'], 32)}"
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process"
    remedy = remedy or "wait for it, end it, or use another --name"
    return f"the folder {shown_path(folder)} is being written by {who}; {remedy}"
