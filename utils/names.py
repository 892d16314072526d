"""Class names: which class of one list is which of another, and names that tell all classes apart."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from utils.errors import UserError
from utils.text import printable, shown

MAX_LISTED = 5
MAX_NAME = 40


def match_names(ours: Sequence[str], theirs: Sequence[str], who: str, others: str) -> list[int | None]:
    """For each of our names its index in another list, None where it is not there.

    Equal lists are matched by index. Otherwise equal names belong together, and where a name has no equal, one that
    differs from it in case, in blanks around it or in how accents are stored only.

    Args:
        ours, theirs: the names.
        who, others: what the lists are called in an error.

    Raises:
        UserError: a name may mean several.
    """
    if list(ours) == list(theirs):
        return list(range(len(ours)))
    found: list[int | None] = [None] * len(ours)
    for plain in (str, plain_name):  # equal names first, so that a never takes the place of A
        mine = _places(ours, {index for index, other in enumerate(found) if other is not None}, plain)
        other = _places(theirs, {index for index in found if index is not None}, plain)
        for name in [name for name in mine if name in other]:
            left, right = mine[name], other[name]
            if len(left) > 1 or len(right) > 1:
                raise UserError(
                    f"{who} {quoted(ours[i] for i in left)} and {others} {quoted(theirs[i] for i in right)} cannot be "
                    "told apart by name; give each class a name of its own"
                )
            found[left[0]] = right[0]
    return found


def class_order(ours: Sequence[str], theirs: Sequence[str], who: str, others: str) -> list[int] | None:
    """How the classes of another list, equally many, have to be put to stand as ours do.

    Names that one list alone has are new words for the classes of that index.

    Returns:
        For each of our classes its index in the other list; None where they stand alike already, or where one list has
        no names but numbers.

    Raises:
        UserError: a name that both have stands elsewhere, and not all names are in both; or a name may mean several.
    """
    if list(ours) == list(theirs):
        return None
    found = match_names(ours, theirs, who, others)
    known = [index for index in found if index is not None]
    if len(known) == len(ours) == len(theirs):
        return None if known == sorted(known) else known
    if unnamed(ours) or unnamed(theirs):
        return None
    for index, other in enumerate(found):
        if other not in (None, index):
            raise UserError(
                f"class {index} of {who} is {quoted([ours[index]])}, which is class {other} of {others}; "
                "the order differs, and so do other names; give both the same names"
            )
    return None


def unnamed(names: Sequence[str]) -> bool:
    """Whether these are the names that a class gets from its number: 0, 1, ... or class0, class1, ..."""
    return any(list(names) == [f"{word}{index}" for index in range(len(names))] for word in ("", "class"))


def distinct_names(names: Sequence[str]) -> list[str]:
    """The names, those that stand twice with their index behind: keys that no two classes share."""
    counts, taken = Counter(names), set(names)
    found = []
    for index, name in enumerate(names):
        new = name if counts[name] == 1 else f"{name} ({index})"
        while counts[name] > 1 and new in taken:
            new += "'"
        taken.add(new)
        found.append(new)
    return found


def quoted(names: Iterable[str]) -> str:
    """Some names for a message, in quotes."""
    listed = [f"'{printable(name, MAX_NAME)}'" for name in names]
    more = f" and {len(listed) - MAX_LISTED} more" if len(listed) > MAX_LISTED else ""
    return ", ".join(listed[:MAX_LISTED]) + more


def _places(names: Sequence[str], taken: set[int], plain: Callable[[str], str]) -> dict[str, list[int]]:
    """The indices of each name in its plain form, without those that are taken."""
    places: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        if index not in taken:
            places.setdefault(plain(name), []).append(index)
    return places


def plain_name(name: str) -> str:
    """A name without what people and systems write now in one way and now in another, such as accents."""
    return unicodedata.normalize("NFC", name).strip().casefold()


def class_names(names: Any, nc: int) -> list[str]:
    """Class names as a list, from upstream's list or {index: name}; a class without a name gets `class<index>`."""
    given = names if isinstance(names, Mapping) else dict(enumerate(names if isinstance(names, list | tuple) else ()))
    found = [given.get(i) for i in range(nc)]
    names = [shown(name) if isinstance(name, int | float) else name for name in found]  # a number may be long
    return [printable(name) if isinstance(name, str) else f"class{i}" for i, name in enumerate(names)]
