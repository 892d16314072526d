"""The one error of this package: a single line that says what is wrong, where, and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class DistillError(ValueError):
    """A student, a teacher or a setting that cannot be distilled as asked; a command ends with `exit_code`."""

    exit_code = 1


def unknown_name(kind: str, name: object, known: Iterable[str], where: str) -> DistillError:
    """The error for a name that is in no table: gives the nearest known one, or lists them all."""
    names = sorted(known)
    close = difflib.get_close_matches(str(name).lower(), names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names) or 'none'}"
    return DistillError(f"{where}: unknown {kind} {name!r}; {hint}")


def check_keys(mapping: object, known: Iterable[str], where: str) -> Mapping[str, Any]:
    """The mapping itself, once it is one and holds no key outside `known`.

    Raises:
        DistillError: it is no mapping, or a key is unknown (the nearest known one is named).
    """
    if not isinstance(mapping, Mapping):
        raise DistillError(f"{where}: expected 'key: value' pairs, found {mapping!r}")
    names = list(known)
    for key in mapping:
        if key not in names:
            raise unknown_name("key", key, names, where)
    return mapping


def check_choice(kind: str, name: str, known: Iterable[str], where: str) -> str:
    """The name itself, once it is one of `known`."""
    names = list(known)
    if name not in names:
        raise unknown_name(kind, name, names, where)
    return name
