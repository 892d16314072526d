"""Opens what `--source` names, and gives the frames of image and video files."""

from __future__ import annotations

import fnmatch
import glob
import itertools
import math
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2

from data.decoding.decode import ImageError, decode_image
from data.decoding.images import IMAGE_SUFFIXES
from data.lists import listed_path, read_lines, walk_files
from data.sources.frames import Frame, Source, usable_fps
from utils.errors import UsageError, UserError
from utils.logging import LOGGER
from utils.text import shown_path

VIDEO_SUFFIXES = frozenset(
    {".asf", ".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"}
)
STREAM_SCHEMES = ("rtsp://", "rtsps://", "rtmp://", "http://", "https://", "tcp://", "udp://")
MOST_FRAMES = 10**9  # that a container may state
MOST_LOOKED_AT = 20_000  # entries of a folder, for a hint
CAMERA_FILE = re.compile(r"/dev/video(\d{1,4})")


def open_source(spec: str | Path, vid_stride: int = 1) -> Source:
    """Opens what `--source` may name.

    Args:
        spec: an image, a video, a folder (its own files, not those of sub-folders), a glob (`**` for sub-folders), a
            .txt list of files, a camera number, a stream's address, or a .streams list of cameras and addresses. A .txt
            list whose lines are all addresses or camera numbers is such a list too, as in YOLOv7.
        vid_stride: take every so-manieth frame of a video or stream.

    Raises:
        UserError: nothing is found, a camera or stream does not open, or a file's type is not known.
    """
    from data.sources.streams import StreamSource  # threads and sockets are for streams alone

    spec = str(spec)
    if vid_stride < 1:
        raise UsageError(f"--vid-stride must be at least 1, got {vid_stride}")
    if not spec.strip():
        raise UsageError("--source is empty; name an image, a video, a folder, a list, a camera or a stream")
    path = Path(os.path.expanduser(spec))
    camera = CAMERA_FILE.fullmatch(spec)
    if camera and os.path.exists(spec):
        return StreamSource([camera.group(1)], vid_stride)
    if is_stream_address(spec) and not os.path.exists(path):  # a folder may be called 2024
        return StreamSource([spec], vid_stride)
    if path.suffix.lower() in (".streams", ".txt") and os.path.isfile(path):
        lines = _entries(path)
        if path.suffix.lower() == ".streams" or all(map(is_stream_address, lines)):
            return StreamSource(lines, vid_stride)
        return FileSource([_listed(line, path) for line in lines], vid_stride)
    return FileSource(_find_files(path, spec), vid_stride)


def is_stream_address(text: str) -> bool:
    """Whether a source names a camera (a number) or a network stream."""
    return (text.isascii() and text.isdecimal() and len(text) <= 4) or text.lower().startswith(STREAM_SCHEMES)


class FileSource(Source):
    """Frames of image and video files, in order. A file that cannot be read is a warning and is skipped.

    Args:
        paths: the files.
        vid_stride: take every so-manieth frame of a video.

    Raises:
        UserError: when iterating, not one file could be read.
    """

    def __init__(self, paths: Sequence[str], vid_stride: int = 1) -> None:
        super().__init__()
        self.paths = list(paths)
        self.vid_stride = vid_stride
        counts = [self._count(path) for path in self.paths]
        self.total = None if 0 in counts else sum(counts)

    def _count(self, path: str) -> int:
        """Frames that a file will give: 1 for an image, 0 where a video does not say."""
        if not _is_video(path):
            return 1
        with _video(path) as capture:
            return math.ceil(_stated_frames(capture) / self.vid_stride) if capture else 0

    def __iter__(self) -> Iterator[Frame]:
        self.skipped = []
        for path in self.paths:
            if _is_video(path):
                yield from self._read_video(path)
            else:
                yield from self._read_image(path)
        if len(self.skipped) == len(self.paths):
            files = f"{len(self.paths)} files" if len(self.paths) > 1 else shown_path(self.paths[0])
            raise UserError(f"--source: {files} could not be read; check that they are whole images or videos")

    def _skip(self, path: str, reason: str) -> None:
        self.skipped.append(path)
        LOGGER.warning(f"skipped {path}: {reason}")

    def _read_image(self, path: str) -> Iterator[Frame]:
        try:
            image = decode_image(path)
        except ImageError as error:
            self._skip(path, _why_missing(path) or f"not a readable image ({error})")
        else:
            yield Frame(image, path)

    def _read_video(self, path: str) -> Iterator[Frame]:
        index = -1
        with _video(path) as capture:
            if capture:
                total, fps = _stated_frames(capture), usable_fps(capture.get(cv2.CAP_PROP_FPS))
                while capture.grab():
                    index += 1
                    if index % self.vid_stride:
                        continue
                    read, image = capture.retrieve()
                    if not read:
                        break
                    yield Frame(image, path, index, total, "video", fps / self.vid_stride)
        if index < 0:
            self._skip(path, _why_missing(path) or "not a readable video")


def _is_video(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in VIDEO_SUFFIXES


@contextmanager
def _video(path: str) -> Iterator[cv2.VideoCapture | None]:
    """A video that is open, or None where it is none. OpenCV would wait for a FIFO, and takes names in UTF-8 only."""
    if not os.path.isfile(path):
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        name = path
        if not path.isprintable():
            name = os.path.join(folder, f"video{os.path.splitext(path)[1]}")
            os.symlink(os.path.abspath(path), name)
        capture = cv2.VideoCapture(name)
        try:
            yield capture if capture.isOpened() else None
        finally:
            capture.release()


def _stated_frames(capture: cv2.VideoCapture) -> int:
    """Frames of a video as its container states them, 0 where that is nonsense."""
    frames = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    return int(frames) if 0 < frames < MOST_FRAMES else 0


def _why_missing(path: str) -> str:
    """Why there is no regular file at a path; empty where there is one."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return "a link that leads nowhere" if os.path.islink(path) else "does not exist"
    return "" if stat.S_ISREG(mode) else "not a regular file"


def _entries(path: Path) -> list[str]:
    """The entries of a list file; comments (#) are left out, but not a file that is called so."""
    lines = read_lines(path, "--source: the list")
    entries = [line for line in lines if not line.startswith("#") or os.path.isfile(_listed(line, path))]
    if not entries:
        raise UserError(f"--source: the list {shown_path(path)} is empty; write a file or an address a line")
    return entries


def _listed(line: str, source: Path) -> str:
    """The file that a line of a list names; one with "./" is looked for in the working folder too."""
    path = listed_path(line, os.path.dirname(os.path.abspath(source)))
    return os.path.abspath(line) if line.startswith("./") and not os.path.exists(path) else path


def _find_files(path: Path, spec: str) -> list[str]:
    source = f"--source: {shown_path(spec)}"
    if os.path.isdir(path):
        found = sorted(entry.path for entry in os.scandir(path) if _may_be_media(entry.path))
        if not found:
            below = next((file for file in walk_files(path, most=MOST_LOOKED_AT) if _may_be_media(file)), None)
            hint = f"for sub-folders use '{path}/**/*{os.path.splitext(below)[1]}'" if below else "check the path"
            raise UserError(f"--source: no images or videos in the folder {shown_path(spec)}; {hint}")
        return found
    if os.path.isfile(path):
        if not _may_be_media(str(path)):
            known = " ".join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))
            raise UserError(f"{source} is neither an image nor a video by its suffix; known: {known}")
        return [str(path)]
    if os.path.lexists(path):
        raise UserError(f"{source} is {_why_missing(str(path))}; name a file or a folder")
    if "://" in spec:
        raise UserError(f"{source} is no address that can be opened; known: {' '.join(STREAM_SCHEMES)}")
    if glob.has_magic(spec):
        literal = str(path).replace("[", "[[]")  # a folder may be called `trip [1]`
        found = sorted(file for file in _glob(str(path)) or _glob(literal) if _may_be_media(file))
        if not found:
            hint = "check the pattern (** for sub-folders)"
            raise UserError(f"--source: no images or videos match {shown_path(spec)}; {hint}")
        return found
    raise UserError(f"{source} does not exist; check the path (looked in {Path.cwd()})")


def _glob(pattern: str) -> list[str]:
    """As glob.glob, but what `**` stands for enters no folder twice, wherever links lead."""
    parts = [part for part, _ in itertools.groupby(Path(pattern).parts)]  # `**/**` is `**`
    if "**" not in parts:
        return glob.glob(pattern)
    place = parts.index("**")
    tops = glob.glob(os.path.join(*parts[:place])) if place else ["."]
    tops.sort(key=lambda top: (os.path.islink(top), top))  # a folder rather than a link to it
    files = (Path(file) for file in walk_files(*tops))
    return [str(file) for file in files if _matches(file.parts[place:], parts[place:])]


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether the parts of a path fit the parts of a pattern; `**` is any number of folders that are not hidden."""
    if not patterns or not names:
        return not patterns and not names
    hidden = names[0].startswith(".")
    if patterns[0] == "**":
        if len(patterns) == 1:
            return not any(name.startswith(".") for name in names)
        return _matches(names, patterns[1:]) or (not hidden and _matches(names[1:], patterns))
    if hidden and not patterns[0].startswith("."):
        return False
    return fnmatch.fnmatchcase(names[0], patterns[0]) and _matches(names[1:], patterns[1:])


def _may_be_media(path: str) -> bool:
    """Whether the name is an image's or a video's. What is no file in truth is told, and skipped, when it is read."""
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES and not os.path.isdir(path)
