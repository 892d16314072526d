"""Reading yaml files with errors a user can act on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from utils.errors import UserError, unknown_name


def load_yaml(path: str | Path, what: str = "file") -> dict[str, Any]:
    """Reads a yaml mapping.

    Args:
        path: the file.
        what: how the file is called in an error, such as "hyper-parameter file".

    Raises:
        UserError: the file does not exist, does not parse, or does not hold a mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{what} {str(path)!r} does not exist; check the path")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8", errors="replace"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = getattr(error, "problem", None) or "not valid yaml"
        raise UserError(f"{what} {str(path)!r}{line}: {reason}; correct the yaml there") from error
    if not isinstance(content, dict):
        found = "nothing" if content is None else type(content).__name__
        raise UserError(f"{what} {str(path)!r} must hold `key: value` lines, found {found}")
    return content


def check_keys(mapping: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Raises a UserError that names the nearest known key for the first key that is not known."""
    known = list(known)
    for key in mapping:
        if key not in known:
            raise unknown_name("key", str(key), known, where)
