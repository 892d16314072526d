"""Values of a user's file as they may stand in a message: one short line, without control characters."""

from __future__ import annotations

import reprlib
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

MAX_SHOWN = 80
"""Characters of a value that a message shows."""
MAX_DIGITS = 40
"""Digits of a whole number that a message shows."""
MAX_PATH_SHOWN = 300
"""Characters of a path that a message shows."""


class _ShortRepr(reprlib.Repr):
    """A repr whose cost is bounded by what it shows, however large or nested the value is."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxother = 2, MAX_SHOWN
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdeque = 4
        self.maxstring = MAX_SHOWN - 2

    def repr_int(self, x: int, level: int) -> str:
        """Whole numbers; one beyond MAX_DIGITS by its size, as Python refuses to write it out."""
        bits = x.bit_length()
        return repr(x) if bits * 0.30103 <= MAX_DIGITS else f"a number of {int(bits * 0.30103) + 1} digits"

    def repr_instance(self, x: Any, level: int) -> str:
        """Anything that is no plain value: its type only, as its own repr may be of any length."""
        return repr(x) if x is None or isinstance(x, bool | float | complex) else f"<{type(x).__name__}>"


def printable(text: Any, limit: int | None = None) -> str:
    """Text for a terminal: control characters, surrogates and line breaks become `?`.

    Args:
        text: a text, or a value whose `str` is short.
        limit: characters that are kept; None keeps all.
    """
    line = str(text)
    if limit is not None and len(line) > limit:
        line = f"{line[: limit - 3]}..."
    return line if line.isprintable() else "".join(c if c.isprintable() else "?" for c in line)


def terminal_text(text: str) -> str:
    """Text of several lines for a terminal: as `printable`, but line breaks, tabs and wide spaces stay."""
    if text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" or unicodedata.category(c) == "Zs" else "?" for c in text)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """The lines of a table in Markdown."""
    cells = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(map(str, row)) + " |" for row in cells]


def shown(value: Any, limit: int = MAX_SHOWN) -> str:
    """A value as an error message shows it: its repr, cut to one line of `limit` characters.

    Use it wherever a message would hold `{value!r}` of a value from a file or a flag. A nested list of a billion
    leaves costs no more than a short one.
    """
    return printable(_ShortRepr().repr(value), limit)


def shown_path(path: Any) -> str:
    """A path as an error message shows it: in quotes, whole unless it is longer than any that a system allows."""
    return repr(printable(path, MAX_PATH_SHOWN))
