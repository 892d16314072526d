"""Lists of files, as training and detection read them, and the files below a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from data.decoding.files import read_regular, reason
from utils.errors import UserError
from utils.text import shown_path

MAX_LIST_BYTES = 256 << 20
MAX_PATH = 4096


def read_lines(path: str | os.PathLike[str], what: str) -> Iterator[str]:
    """The lines of a list that are not empty, without blanks around them and in their order.

    A list is UTF-8, or UTF-16 with a byte order mark; bytes that are no UTF-8 stay what they are, as file names may
    have them. Lines end as on any system.

    Args:
        path: the list.
        what: how it is called in an error, such as "image list".

    Raises:
        UserError: it cannot be read, or holds no text.
    """
    try:
        content = read_regular(path, MAX_LIST_BYTES)
    except OSError as error:
        raise UserError(f"{what} {shown_path(path)} cannot be read: {reason(error)}") from error
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = content.decode("utf-16", "replace")
    elif b"\0" in content:
        raise UserError(f"{what} {shown_path(path)} is no text in UTF-8; save it as UTF-8, a path a line")
    else:
        text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    for line in text.replace("\r", "\n").split("\n"):
        if line := line.strip():
            yield line


def listed_path(line: str, folder: str) -> str:
    """The absolute path that a line of a list means, spelled in one way, so that a/../x.jpg and x.jpg are one image.

    A leading "./" stands for the list's own folder. Any other relative path counts from the working folder, or from the
    list's folder where the first does not exist.

    Args:
        line: of the list.
        folder: the list's own, absolute.
    """
    if os.path.isabs(line) or (not line.startswith("./") and len(line) <= MAX_PATH and os.path.exists(line)):
        return os.path.abspath(line)
    return os.path.abspath(os.path.join(folder, line))


def walk_files(
    *tops: str | Path, most: int | None = None, closed: list[tuple[str, OSError]] | None = None
) -> Iterator[str]:
    """All below some folders that is no folder itself. No folder is entered twice, wherever links lead.

    A folder is preferred to a link that leads to it.

    Args:
        tops: the folders.
        most: entries to look at, then it ends.
        closed: folders that cannot be looked into are added to it, with the reason.
    """
    folders = [str(top) for top in reversed(tops)]
    links: list[str] = []
    entered: set[str] = set()
    seen = 0
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)  # links last: what they lead to may still come
        real = os.path.realpath(folder)
        if real in entered:
            continue
        entered.add(real)
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            if closed is not None:
                closed.append((folder, error))
            continue
        for entry in entries:
            seen += 1
            if most is not None and seen > most:
                return
            if os.path.isdir(entry.path):
                (links if entry.is_symlink() else folders).append(entry.path)
            else:
                yield entry.path
