"""What every source gives: frames."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

FALLBACK_FPS = 30.0


MOST_STREAMS = 256  # a thread each


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
        paths: files, cameras and addresses, as its frames name them.
        skipped: files that could not be read in the latest iteration.
    """

    total: int | None = None
    is_stream: bool = False

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.skipped: list[str] = []

    def __iter__(self) -> Iterator[Frame]:
        raise NotImplementedError

    def close(self) -> None:
        """Releases cameras, connections and threads; a second call does nothing."""


def usable_fps(fps: float) -> float:
    """A frame rate as a container states it, or 30 where it states nonsense."""
    return fps if math.isfinite(fps) and 0.1 <= fps <= 1000 else FALLBACK_FPS
