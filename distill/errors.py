"""The one error of this package: a single line that says what is wrong, where, and the remedy."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any


class DistillError(ValueError):
    """A student, a teacher or a setting that cannot be distilled as asked; a command ends with `exit_code`."""

    exit_code = 1


_MOST_NAMES = 40
"""Names that a message lists."""
_LONGEST = 80
"""Characters of a value that a message shows."""


def printable(text: object, limit: int = _LONGEST) -> str:
    """A text in one line of a message: cut to `limit` characters, `?` for each that a terminal would obey."""
    line = str(text)
    line = line if len(line) <= limit else f"{line[: limit - 3]}..."
    return "".join(c if c.isprintable() else "?" for c in line)


class _ShortRepr(reprlib.Repr):
    """A repr that costs no more than what is shown of it, however large or nested the value is."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring = 2, _LONGEST - 2

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() < 128 else "a number of many digits"

    def repr_instance(self, x: Any, level: int) -> str:
        return repr(x) if x is None or isinstance(x, bool | float | complex) else f"<{type(x).__name__}>"


def shown(value: object) -> str:
    """A value of a user's file as a message shows it."""
    return printable(_ShortRepr().repr(value))


def unknown_name(kind: str, name: object, known: Iterable[str], where: str) -> DistillError:
    """The error for a name that is in no table: gives the nearest known one, or lists them all."""
    names = sorted(known)
    close = difflib.get_close_matches(printable(name).lower(), names, n=1, cutoff=0.5)
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    listed = ", ".join(map(printable, names[:_MOST_NAMES])) + more
    hint = f"did you mean {shown(close[0])}?" if close else f"known: {listed or 'none'}"
    return DistillError(f"{where}: unknown {kind} {shown(name)}; {hint}")


def check_keys(mapping: object, known: Iterable[str], where: str) -> Mapping[str, Any]:
    """The mapping itself, once it is one and holds no key outside `known`.

    Raises:
        DistillError: it is no mapping, or a key is unknown (the nearest known one is named).
    """
    if not isinstance(mapping, Mapping):
        raise DistillError(f"{where}: expected 'key: value' pairs, found {shown(mapping)}")
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
