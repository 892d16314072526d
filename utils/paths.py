"""Files that must exist, files that are written as a whole, content hashes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import socket
import stat
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from utils.errors import UsageError, UserError
from utils.text import shown, shown_path

REPOSITORY = Path(__file__).resolve().parents[1]
MAX_NAME_BYTES = 240
"""Of a run folder's name; file systems take 255, some of them are for numbers and endings."""
MAX_DRAFT_NAME = 100
"""Bytes of a file's name that its draft's name repeats; some file systems allow 143 in all."""
FOREIGN_DRAFT_SECONDS = 24 * 3600
"""After which another machine's draft is taken for a dead one's."""
DRAFT_NAMES = (
    re.compile(r"\..+?\.(?P<process>\d+)(?:\.(?P<host>[0-9a-f]{8}))?\.tmp"),
    re.compile(r".+\.(?:npy|index\.cache)\.(?P<process>\d+)(?P<host>)(?:\.tmp)?"),  # of earlier versions' caches
)


def run_path(project: str | Path, name: str) -> Path:
    """The folder `name` below `project`, neither of which need exist.

    Args:
        project: the folder of the runs.
        name: of this run's folder; may have several parts, as in `yolov7/first`.

    Raises:
        UsageError: the name is empty, leads out of the project's folder, is too long, or has control characters.
    """
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts:
        raise UsageError(f"--name {shown_path(name)} must name a folder below --project; choose another name")
    if any(unicodedata.category(c) == "Cc" for c in name):
        raise UsageError(f"--name {shown(name)} has control characters; choose another name")
    if any(len(os.fsencode(part)) > MAX_NAME_BYTES for part in parts):
        raise UsageError(f"--name {shown(name)} is longer than {MAX_NAME_BYTES} bytes; choose a shorter one")
    return Path(project) / name


def existing_file(path: str | Path, what: str) -> Path:
    """`path` as a Path, or a UserError that says what is missing and where it was looked for."""
    path = Path(path)
    name = f"{what} {shown_path(path)}"
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # the latter: a zero character
        dangling = f"is a link to {shown_path(os.readlink(path))}, which" if os.path.islink(path) else ""
        place = f"check the path (looked in {Path.cwd()})"
        raise UserError(f"{name} {dangling}{' ' * bool(dangling)}does not exist; {place}") from error
    except OSError as error:
        raise UserError(f"{name} cannot be used: {error.strerror}; check the path") from error
    if stat.S_ISDIR(mode):
        raise UserError(f"{name} is a folder; name a file in it")
    if not stat.S_ISREG(mode):
        raise UserError(f"{name} is a device or a pipe; name a regular file")
    return path


def read_bounded(path: Path, most: int, where: str) -> bytes:
    """The bytes of a file.

    Args:
        path: a regular file.
        most: bytes it may have.
        where: what to call it in an error.

    Raises:
        UserError: it is larger, or cannot be read.
    """
    try:
        with open(path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            content = stream.read(min(size, most) + 1)  # the memory for as many bytes is set aside at once
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror}; check its rights") from error
    if len(content) > most:
        raise UserError(f"{where} has more than {most >> 20} MB, as no such file has; check which one it is")
    return content


def read_record(path: Path) -> dict[str, Any]:
    """The mapping of a JSON file that this software has written to know later what it did.

    Raises:
        UserError: the file is damaged.
    """
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{shown_path(path)} is damaged; remove it, or its folder, to do it anew") from error
    if not isinstance(content, dict):
        raise UserError(f"{shown_path(path)} is damaged: no mapping; remove it, or its folder, to do it anew")
    return content


@contextmanager
def replacing(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Opens a draft that becomes the file once it is complete: on a full disk the old file stays, and nothing else.

    The draft of a process that is killed meanwhile stays until `remove_dead_drafts`.

    Args:
        path: the file; its folder must exist.
        mode: "w" for text, written as it is in UTF-8 (what UTF-8 has no bytes for as an escape), or "wb" for bytes.

    Raises:
        OSError: the file cannot be written; names it.
    """
    path = Path(path)
    if os.path.lexists(path) and not path.is_file() and not path.is_dir() and not path.is_symlink():
        raise OSError(errno.EINVAL, "it is a device or a pipe, which a file must not take the place of", str(path))
    draft = path.with_name(_draft_name(path.name))
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "", "errors": "backslashreplace"}
    try:
        with open(draft, mode, **text) as stream:  # type: ignore[call-overload]
            yield stream
        os.replace(draft, path)
    except OSError as error:
        if error.filename in (None, str(draft)):
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):  # the folder may have vanished
            draft.unlink(missing_ok=True)


def _draft_name(name: str) -> str:
    """`.NAME.PROCESS.HOST.tmp`, with a long name by its hash so that it stays within what file systems allow."""
    encoded = name.encode("utf-8", "surrogatepass")
    short = name if len(encoded) <= MAX_DRAFT_NAME else hashlib.sha256(encoded).hexdigest()[:32]
    return f".{short}.{os.getpid()}.{_host_tag()}.tmp"


def _host_tag() -> str:
    """Eight digits that stand for this machine: the number of a process means something on its own machine only."""
    return hashlib.sha256(socket.gethostname().encode("utf-8", "surrogatepass")).hexdigest()[:8]


def remove_dead_drafts(folder: str | Path) -> None:
    """Removes drafts in a folder whose process is dead, or was on another machine and is a day without a sign.

    A draft of a living process stays, and so does what cannot be removed.
    """
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = next((found for name in DRAFT_NAMES if (found := name.fullmatch(entry.name))), None)
            if match and entry.is_file(follow_symlinks=False) and _is_dead(match, entry):
                with suppress(OSError):
                    os.unlink(entry.path)


def _is_dead(draft: re.Match[str], entry: os.DirEntry[str]) -> bool:
    if draft["host"] in (None, "", _host_tag()) and os.name == "posix":  # elsewhere the question would end the process
        try:
            os.kill(int(draft["process"]), 0)
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):
            return False
        return False
    try:
        return time.time() - entry.stat(follow_symlinks=False).st_mtime > FOREIGN_DRAFT_SECONDS
    except OSError:
        return False


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
