"""Frames to detect on: from images, folders, globs, lists, videos, cameras and network streams."""

from __future__ import annotations

import glob
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from data.images import IMAGE_SUFFIXES
from utils.errors import UserError
from utils.logging import LOGGER

VIDEO_SUFFIXES = frozenset(
    {".asf", ".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"}
)
STREAM_SCHEMES = ("rtsp://", "rtsps://", "rtmp://", "http://", "https://", "tcp://", "udp://")
FALLBACK_FPS = 30.0


@dataclass(frozen=True)
class Frame:
    """One picture of a source.

    Attributes:
        image: uint8 (H, W, 3) BGR.
        path: the file, or the camera or stream as it was named.
        index: number of the frame in its video or stream, from 0.
        total: frames of the file; 1 for an image, 0 where unknown.
        kind: "image", "video" or "stream".
        fps: frames a second, for writing a video of what comes out.
    """

    image: np.ndarray
    path: str
    index: int = 0
    total: int = 1
    kind: str = "image"
    fps: float = FALLBACK_FPS


class Source:
    """Yields the frames of a source; a stream's only once.

    Attributes:
        total: number of frames, or None for what has no end known before.
        is_stream: whether frames come from cameras or the network, in real time.
        skipped: files that could not be read in the latest iteration.
    """

    total: int | None = None
    is_stream: bool = False

    def __init__(self) -> None:
        self.skipped: list[str] = []

    def __iter__(self) -> Iterator[Frame]:
        raise NotImplementedError

    def close(self) -> None:
        """Releases cameras, connections and threads; a second call does nothing."""


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
    from data.streams import StreamSource  # threads and sockets are for streams alone

    spec = str(spec)
    if vid_stride < 1:
        raise UserError(f"--vid-stride must be at least 1, got {vid_stride}")
    if is_stream_address(spec):
        return StreamSource([spec], vid_stride)
    path = Path(spec).expanduser()
    if path.suffix.lower() in (".streams", ".txt") and path.is_file():
        lines = _lines(path)
        if path.suffix.lower() == ".streams" or all(map(is_stream_address, lines)):
            return StreamSource(lines, vid_stride)
        return FileSource([_listed(line, path.parent) for line in lines], vid_stride)
    return FileSource(_find_files(path, spec), vid_stride)


def is_stream_address(text: str) -> bool:
    """Whether a source names a camera (a number) or a network stream."""
    return text.isdecimal() or text.lower().startswith(STREAM_SCHEMES)


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
        if Path(path).suffix.lower() not in VIDEO_SUFFIXES:
            return 1
        capture = cv2.VideoCapture(path)
        frames = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
        capture.release()
        return max(math.ceil(frames / self.vid_stride), 0)

    def __iter__(self) -> Iterator[Frame]:
        self.skipped = []
        for path in self.paths:
            if Path(path).suffix.lower() in VIDEO_SUFFIXES:
                yield from self._read_video(path)
            else:
                yield from self._read_image(path)
        if len(self.skipped) == len(self.paths):
            files = f"{len(self.paths)} files" if len(self.paths) > 1 else repr(self.paths[0])
            raise UserError(f"--source: {files} could not be read; check that they are whole images or videos")

    def _skip(self, path: str, reason: str) -> None:
        self.skipped.append(path)
        LOGGER.warning(f"skipped {path}: {reason}")

    def _read_image(self, path: str) -> Iterator[Frame]:
        if not Path(path).is_file():
            self._skip(path, "does not exist")
            return
        try:
            image = cv2.imread(path, cv2.IMREAD_COLOR)
        except cv2.error as error:
            image, reason = None, str(error).strip().splitlines()[-1]
        else:
            reason = "not a readable image"
        if image is None:
            self._skip(path, reason)
        else:
            yield Frame(image, path)

    def _read_video(self, path: str) -> Iterator[Frame]:
        capture = cv2.VideoCapture(path)
        total = int(max(capture.get(cv2.CAP_PROP_FRAME_COUNT), 0))
        fps = usable_fps(capture.get(cv2.CAP_PROP_FPS))
        index = -1
        try:
            while capture.grab():
                index += 1
                if index % self.vid_stride:
                    continue
                read, image = capture.retrieve()
                if not read:
                    break
                yield Frame(image, path, index, total, "video", fps / self.vid_stride)
        finally:
            capture.release()
        if index < 0:
            self._skip(path, "not a readable video" if Path(path).is_file() else "does not exist")


def usable_fps(fps: float) -> float:
    """A frame rate as a container states it, or 30 where it states nonsense."""
    return fps if math.isfinite(fps) and 0.1 <= fps <= 1000 else FALLBACK_FPS


def _lines(path: Path) -> list[str]:
    """The entries of a list file: a line each, empty lines and comments (#) left out."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    entries = [line for line in lines if line and not line.startswith("#")]
    if not entries:
        raise UserError(f"--source: the list {str(path)!r} is empty; write a file or an address a line")
    return entries


def _listed(line: str, folder: Path) -> str:
    """A file of a list: relative to the working folder, or to the list's own where it is not found there."""
    if not Path(line).is_file() and (folder / line).is_file():
        return str(folder / line)
    return line


def _find_files(path: Path, spec: str) -> list[str]:
    if path.is_dir():
        found = sorted(str(file) for file in path.iterdir() if _is_media(file))
        if not found:
            below = next((file for file in path.rglob("*") if _is_media(file)), None)
            hint = f"for sub-folders use '{path}/**/*{below.suffix}'" if below else "check the path"
            raise UserError(f"--source: no images or videos in the folder {spec!r}; {hint}")
        return found
    if path.is_file():
        if not _is_media(path):
            known = " ".join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))
            raise UserError(f"--source: {spec!r} is neither an image nor a video by its suffix; known: {known}")
        return [str(path)]
    if glob.has_magic(spec):
        found = sorted(file for file in glob.glob(str(path), recursive=True) if _is_media(Path(file)))
        if not found:
            raise UserError(f"--source: no images or videos match {spec!r}; check the pattern (** for sub-folders)")
        return found
    raise UserError(f"--source: {spec!r} does not exist; check the path (looked in {Path.cwd()})")


def _is_media(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES and path.is_file()
