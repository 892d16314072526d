"""Errors that are the user's to mend: one line that says what, where, and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from utils.text import printable, shown

MAX_COMPARED = 100  # characters of a name; comparing takes the square of them
MAX_LISTED = 40  # names in a message


class UserError(Exception):
    """A mistake in a file, a data set or a checkpoint. A command line prints it and exits with `exit_code`."""

    exit_code = 1


class UsageError(UserError):
    """A mistake in how a command was called."""

    exit_code = 2


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest to `name`, or None when nothing is similar."""
    lowered = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name[:MAX_COMPARED].lower(), lowered, n=1, cutoff=0.5)
    return lowered[close[0]] if close else None


def unknown_name(kind: str, name: object, known: Iterable[object], where: str) -> UserError:
    """The error for a name that is in no table: names the nearest known one, or lists them all."""
    known = sorted(str(k) for k in known)
    guess = nearest(name, known) if isinstance(name, str) else None
    more = f", ... ({len(known)} in all)" if len(known) > MAX_LISTED else ""
    names = ", ".join(printable(k, MAX_COMPARED) for k in known[:MAX_LISTED])
    hint = f"did you mean {shown(guess)}?" if guess else f"known: {names}{more}"
    return UserError(f"{where}: unknown {kind} {shown(name)}; {hint}")
