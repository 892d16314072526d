"""Paths: run folders that count upwards, files that must exist, content hashes."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from utils.errors import UserError


def increment_path(path: str | Path, exist_ok: bool = False) -> Path:
    """The next free run folder: `exp`, then `exp2`, `exp3`, ... one past the highest that exists.

    Args:
        path: the wanted folder, such as runs/train/exp.
        exist_ok: return `path` itself even when it exists.
    """
    path = Path(path)
    if exist_ok or not path.exists():
        return path
    pattern = re.compile(re.escape(path.name) + r"(\d+)$")
    matches = (pattern.match(sibling.name) for sibling in path.parent.iterdir())
    taken = [int(match.group(1)) for match in matches if match]
    return path.with_name(f"{path.name}{max(taken, default=1) + 1}")


def existing_file(path: str | Path, what: str) -> Path:
    """`path` as a Path, or a UserError that says what is missing and where it was looked for."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{what} {str(path)!r} is a folder; name a file in it")
    if not path.is_file():
        raise UserError(f"{what} {str(path)!r} does not exist; check the path (looked in {Path.cwd()})")
    return path


@contextmanager
def replacing(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Opens a draft that becomes the file once it is complete: on a full disk the old file stays, and nothing else.

    Args:
        path: the file; its folder must exist.
        mode: "w" for text, written as it is in UTF-8, or "wb" for bytes.

    Raises:
        OSError: the file cannot be written; names it.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        with open(draft, mode, **text) as stream:  # type: ignore[call-overload]
            yield stream
        os.replace(draft, path)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        draft.unlink(missing_ok=True)


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
