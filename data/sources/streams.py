"""Cameras and network streams: a thread for each keeps the newest frame, so that detection never falls behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np

from data.sources.frames import MOST_STREAMS, Frame, Source, usable_fps
from utils.errors import UserError
from utils.logging import LOGGER
from utils.text import shown_path

OPEN_TIMEOUT = 10.0  # seconds, also for a single frame to come
MAX_RECONNECTS = 3
LIVE_SCHEMES = ("rtsp", "rtmp", "tcp", "udp")


def open_capture(address: str) -> Any:
    """An OpenCV capture of a camera number or an address."""
    if address.isdecimal():
        return cv2.VideoCapture(int(address))
    milliseconds = int(OPEN_TIMEOUT * 1000)
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, milliseconds, cv2.CAP_PROP_READ_TIMEOUT_MSEC, milliseconds]
    return cv2.VideoCapture(address, cv2.CAP_FFMPEG, limits)


class StreamReader:
    """Reads one stream in a thread and keeps its newest frame.

    Args:
        address: camera number or address.
        stride: keep every so-manieth frame.
        opener: gives an object with `isOpened`, `grab`, `retrieve`, `get` and `release`; `open_capture` by default.
        reconnect_pause: seconds before a lost live stream is opened again.

    Raises:
        UserError: it does not open.
    """

    def __init__(
        self,
        address: str,
        stride: int = 1,
        opener: Callable[[str], Any] | None = None,
        reconnect_pause: float = 1.0,
    ) -> None:
        self.address = address
        self.stride = stride
        self.ended = False
        self._opener = opener or open_capture
        self._pause = reconnect_pause
        self._capture = self._opener(address)
        if not self._capture.isOpened():
            self._capture.release()
            what = f"camera {address}" if address.isdecimal() else f"stream {shown_path(address)}"
            raise UserError(f"--source: {what} does not open; check that it is there and not in use, and its address")
        self.fps = usable_fps(self._capture.get(cv2.CAP_PROP_FPS))
        self._newest: tuple[np.ndarray, int] | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"stream {address}", daemon=True)

    def start(self, changed: threading.Condition) -> None:
        """Starts the thread; `changed` is notified of every frame and of the end."""
        self._changed = changed
        self._thread.start()

    def take(self) -> tuple[np.ndarray, int] | None:
        """The newest frame and its number if it was not taken before."""
        with self._lock:
            newest, self._newest = self._newest, None
            return newest

    def close(self) -> None:
        """Stops the thread and releases the stream."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2 * OPEN_TIMEOUT)
        elif not self.ended:
            self._capture.release()

    def _run(self) -> None:
        index = -1
        try:
            while not self._stop.is_set():
                if not self._capture.grab():
                    if not self._reconnect():
                        break
                    continue
                index += 1
                if index % self.stride:
                    continue
                read, image = self._capture.retrieve()
                if read:
                    with self._lock:
                        self._newest = (image, index)
                    with self._changed:
                        self._changed.notify_all()
        finally:
            self._capture.release()
            with self._changed:
                self.ended = True
                self._changed.notify_all()

    def _reconnect(self) -> bool:
        """Opens a lost live stream again. A file served over http has simply come to its end."""
        if not self.address.lower().startswith(LIVE_SCHEMES):
            return False
        for attempt in range(MAX_RECONNECTS):
            LOGGER.warning(f"{self.address}: connection lost, opening it again ({attempt + 1} of {MAX_RECONNECTS})")
            self._capture.release()
            if self._stop.wait(self._pause):
                return False
            self._capture = self._opener(self.address)
            if self._capture.isOpened() and self._capture.grab():
                return True
        LOGGER.warning(f"{self.address}: gave up")
        return False


class StreamSource(Source):
    """The newest frames of one or several streams, each as soon as it is there, until all have ended.

    Args:
        addresses: camera numbers or addresses.
        vid_stride: take every so-manieth frame.
        opener: see `StreamReader`.

    Raises:
        UserError: one does not open.
    """

    is_stream = True

    def __init__(
        self, addresses: Sequence[str], vid_stride: int = 1, opener: Callable[[str], Any] | None = None
    ) -> None:
        super().__init__()
        self.paths = list(addresses)
        self._changed = threading.Condition()
        self._readers: list[StreamReader] = []
        if len(addresses) > MOST_STREAMS:
            raise UserError(f"--source: {len(addresses)} streams; at most {MOST_STREAMS} are read at a time")
        try:
            for address in addresses:
                self._readers.append(StreamReader(address, vid_stride, opener))
        except UserError:
            self.close()
            raise

    def __iter__(self) -> Iterator[Frame]:
        for reader in self._readers:
            reader.start(self._changed)
        try:
            yield from self._frames()
        finally:
            self.close()

    def _frames(self) -> Iterator[Frame]:
        last = time.monotonic()
        while True:
            running = [reader for reader in self._readers if not reader.ended]
            taken = [(reader, newest) for reader in self._readers if (newest := reader.take()) is not None]
            for reader, (image, index) in taken:
                yield Frame(image, reader.address, index, 0, "stream", reader.fps / reader.stride)
            if taken:
                last = time.monotonic()
            elif not running:
                return
            elif time.monotonic() - last > 2 * OPEN_TIMEOUT:
                LOGGER.warning(f"no frame for {2 * OPEN_TIMEOUT:.0f} seconds from {running[0].address}; stopping")
                return
            else:
                with self._changed:
                    self._changed.wait(timeout=0.1)

    def close(self) -> None:
        """Stops all threads and releases the streams."""
        for reader in self._readers:
            reader.close()
        self._readers = []
