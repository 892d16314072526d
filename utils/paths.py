"""Paths: run folders that count upwards, files that must exist, content hashes."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

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


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
