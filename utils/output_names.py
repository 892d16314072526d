"""What is written about a source file is called: its stem, or more of its path where stems are equal."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

MAX_BYTES = 255
"""Of a file name, on all common systems."""
FRAME = re.compile(r"(.*)_[1-9][0-9]*", re.DOTALL)
"""What the label file of a video's frame is called: the name of the video and a number."""


class OutputNames:
    """A name for each source file, which no other has.

    It is the stem of the file. Files with equal stems have the folders before it that they do not share (a/x.png and
    b/x.png: a_x and b_x), those in one folder the suffix behind it (x.jpg and x.png: x_jpg and x_png). A video leaves
    the names of its frames to pictures that are called so (clip.mp4 beside clip_1.png: clip_mp4). So a name depends
    on which files there are, not on their order.

    Args:
        paths: all files, cameras and addresses that will be asked for. One that comes later gets a name too, but
            cannot change what others are called.
        numbered: whether files are written for the frames of a source, `<name>_<number>`.
    """

    def __init__(self, paths: Iterable[str] = (), numbered: Callable[[str], bool] = lambda path: False) -> None:
        self._numbered = numbered
        self._names: dict[str, str] = {}
        self._taken: set[str] = set()
        self._frames_of: set[str] = set()  # names whose frames have files
        self._frame_like: set[str] = set()  # names that lack a number to be one that is taken
        self._name_all(sorted(set(map(_place, paths))))

    def __getitem__(self, path: str) -> str:
        """The name of a source."""
        place = _place(path)
        if place not in self._names:
            self._name_all([place])
        return self._names[place]

    def is_taken(self, name: str) -> bool:
        """Whether a source has this name."""
        return folded(name) in self._taken

    def _name_all(self, places: Iterable[str]) -> None:
        groups: dict[str, list[str]] = defaultdict(list)
        for place in places:
            groups[folded(_stem(place))].append(place)
        alone = [(_stem(group[0]), group[0]) for group in groups.values() if len(group) == 1]
        late = [group for group in groups.values() if len(group) > 1]
        for stem, place in sorted(alone, key=lambda item: self._numbered(item[1])):  # pictures first
            if self._is_free(stem, place):
                self._give(place, stem)
            else:
                late.append([place])
        for group in late:
            for place, name in zip(group, _long_names(group)):
                wanted, number = f"{name}_" if folded(name) in self._frames_of else name, 2
                while not self._is_free(name, place):
                    name, number = f"{wanted}_{number}", number + 1
                self._give(place, name)

    def _is_free(self, name: str, place: str) -> bool:
        plain = folded(name)
        if plain in self._taken or (self._numbered(place) and plain in self._frame_like):
            return False
        return _frame_of(plain) not in self._frames_of

    def _give(self, place: str, name: str) -> None:
        self._names[place], plain = name, folded(name)
        self._taken.add(plain)
        if self._numbered(place):
            self._frames_of.add(plain)
        elif (video := _frame_of(plain)) is not None:
            self._frame_like.add(video)


def folded(name: str) -> str:
    """A name as the file system tells it from others: without what makes no difference to it, as case."""
    if sys.platform == "darwin":  # to which accents are the same in either form of Unicode
        return unicodedata.normalize("NFC", name).casefold()
    return name.casefold() if sys.platform == "win32" else name


def file_name(name: str, suffix: str) -> str:
    """A name and a suffix as the name of a file; one that is too long is cut and ends with a digest of the whole."""
    if len(os.fsencode(name + suffix)) <= MAX_BYTES:
        return name + suffix
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
    kept = os.fsencode(name)[: MAX_BYTES - len(os.fsencode(suffix)) - len(digest) - 1]
    return f"{kept.decode('utf-8', 'ignore')}_{digest}{suffix}"


def _place(path: str) -> str:
    """Where a source is, spelled in one way."""
    return path if _is_address(path) else os.path.abspath(path)


def _is_address(path: str) -> bool:
    return "://" in path


def _stem(place: str) -> str:
    """The file name without its suffix; of an address what tells it from others, without user name and password."""
    if _is_address(place):
        return re.sub(r"[^\w.-]+", "_", place.partition("://")[2].rpartition("@")[2])
    return Path(place).stem


def _long_names(places: Sequence[str]) -> list[str]:
    """Names of sources with equal stems: with the folders that they do not share, then with their suffixes."""
    if any(map(_is_address, places)):
        return [_stem(place) for place in places]
    folders = [Path(place).parent for place in places]
    shared = len(Path(os.path.commonpath(folders)).parts) if len({folder.anchor for folder in folders}) == 1 else 1
    names = ["_".join([*folder.parts[shared:], _stem(place)]) for folder, place in zip(folders, places)]
    counts = Counter(map(folded, names))
    return [
        f"{name}_{Path(place).suffix[1:]}" if len(names) == 1 or counts[folded(name)] > 1 else name
        for name, place in zip(names, places)
    ]


def _frame_of(name: str) -> str | None:
    """The video whose frame a name would be, None where it ends with no number."""
    match = FRAME.fullmatch(name)
    return match.group(1) if match else None
