"""Reading yaml files with errors a user can act on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from utils.errors import UserError, unknown_name
from utils.paths import existing_file

# What the files of this software are called, the flag that takes them, and keys that only such a file has.
KINDS = {
    "architecture": ("--cfg", {"backbone", "head"}),
    "data file": ("--data", {"train", "val"}),
    "hyper-parameter file": ("--hyp", {"lr0", "kd_losses"}),
    "experiment file": ("--experiment", {"arms"}),
}


def load_yaml(path: str | Path, what: str = "file") -> dict[str, Any]:
    """Reads a yaml mapping.

    Args:
        path: the file.
        what: how the file is called in an error, such as "hyper-parameter file".

    Raises:
        UserError: the file does not exist, does not parse, does not hold a mapping, or is another of KINDS than `what`.
    """
    path = existing_file(path, what)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8", errors="replace"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # the latter two: 2024-99-99, and [[[[...
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = getattr(error, "problem", None) or "not valid yaml"
        raise UserError(f"{what} {str(path)!r}{line}: {reason}; correct the yaml there") from error
    if not isinstance(content, dict):
        found = "nothing" if content is None else type(content).__name__
        raise UserError(f"{what} {str(path)!r} must hold `key: value` lines, found {found}")
    for kind, (flag, keys) in KINDS.items():
        if what in KINDS and kind != what and keys & content.keys() and not KINDS[what][1] & content.keys():
            wanted = f"name one for {KINDS[what][0]} ({what})"
            raise UserError(f"{str(path)!r} is a file for {flag} ({kind}); {wanted}")
    return content


def check_keys(mapping: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Raises a UserError that names the nearest known key for the first key that is not known."""
    known = list(known)
    for key in mapping:
        if key not in known:
            raise unknown_name("key", str(key), known, where)
