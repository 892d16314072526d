"""Reading images at the size that training needs, and keeping them in memory or on disk."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from data.records import ImageRecord
from utils.errors import UserError, unknown_name
from utils.logging import LOGGER, progress

JPEG_SUFFIXES = (".jpg", ".jpeg")
REDUCED_JPEG = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
CACHES = ("ram", "disk")
RECENT_BYTES = 256 << 20  # holds a partner pool of images of about one megapixel


class UnreadableImageError(Exception):
    """An image of the data set that cannot be decoded (any more).

    Attributes:
        index: its place in the data set.
    """

    def __init__(self, index: int, path: str) -> None:
        super().__init__(f"image {path!r} cannot be read")
        self.index = index
        self.path = path


def sufficient_reduction(width: int, height: int, long_side: int) -> int:
    """The largest of 1, 2, 4, 8 by which an image can be reduced and still measure `long_side` pixels."""
    return max(r for r in REDUCED_JPEG if r == 1 or max(width, height) >= r * long_side)


def decode_image(path: str, reduction: int = 1) -> np.ndarray | None:
    """Decodes an image file, upright by its EXIF orientation.

    Args:
        path: the image.
        reduction: 1, 2, 4 or 8: the size is divided by it. A JPEG is decoded at that size directly, in much less time.

    Returns:
        uint8 BGR (H, W, 3), or None if the file is not there or is no image.
    """
    if not os.path.isfile(path):
        return None
    if reduction == 1 or path.lower().endswith(JPEG_SUFFIXES):
        return cv2.imread(path, REDUCED_JPEG[reduction])
    image = cv2.imread(path, cv2.IMREAD_COLOR)
    if image is None:
        return None
    size = (max(image.shape[1] // reduction, 1), max(image.shape[0] // reduction, 1))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def fit_long_side(image: np.ndarray, long_side: int) -> np.ndarray:
    """Resizes an image so that its longer side measures `long_side`, averaging areas when it shrinks."""
    height, width = image.shape[:2]
    ratio = long_side / max(height, width)
    if ratio == 1:
        return image
    size = (max(int(width * ratio), 1), max(int(height * ratio), 1))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if ratio < 1 else cv2.INTER_LINEAR)


class ImageReader:
    """Reads the images of a data set by their index and remembers what it read last.

    Args:
        records: the data set.
        img_size: the longer side that images are needed at, in pixels.
        exact: resize to `img_size` exactly, for evaluation. Otherwise an image is only reduced as far as decoding does
            it for free, so that its longer side is at least `img_size` where the file has as much.
        cache: "ram" reads all images now and keeps them; "disk" keeps them decoded in files beside the image folders.
        recent_bytes: how much of what was read last is kept in memory.

    Raises:
        UserError: an unknown kind of cache, or a folder for the disk cache cannot be written.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        img_size: int,
        *,
        exact: bool = False,
        cache: str | None = None,
        recent_bytes: int = RECENT_BYTES,
    ) -> None:
        if cache is not None and cache not in CACHES:
            raise unknown_name("image cache", cache, CACHES, "--cache")
        self.records = records
        self.img_size = img_size
        self.exact = exact
        # Evaluation goes through all images in one order: what does not fit as a whole is gone before it comes round.
        self.recent_bytes = 0 if exact and self._estimate_bytes() > recent_bytes else recent_bytes
        self.on_disk = cache == "disk"
        self._recent: OrderedDict[int, np.ndarray] = OrderedDict()
        self._recent_size = 0
        self._all: list[np.ndarray | None] = []
        if self.on_disk:
            self._make_cache_folders()
        if cache == "ram":
            self._fill_memory()

    def read(self, index: int) -> np.ndarray:
        """The image as uint8 BGR (H, W, 3). It is shared: whoever changes it makes a copy first.

        Raises:
            UnreadableImageError: the file is gone or broken.
        """
        image = self._all[index] if self._all else self._recent.get(index)
        if image is not None:
            return image
        image = self._load_from_disk_cache(index) if self.on_disk else self._load(index)
        if image is None:
            raise UnreadableImageError(index, self.records[index].path)
        if not self._all:
            self._remember(index, image)
        return image

    def _load(self, index: int) -> np.ndarray | None:
        record = self.records[index]
        if self.exact:
            image = decode_image(record.path)
            return image if image is None else fit_long_side(image, self.img_size)
        return decode_image(record.path, sufficient_reduction(record.width, record.height, self.img_size))

    def _remember(self, index: int, image: np.ndarray) -> None:
        self._recent[index] = image
        self._recent_size += image.nbytes
        while self._recent_size > self.recent_bytes:
            _, oldest = self._recent.popitem(last=False)
            self._recent_size -= oldest.nbytes

    def _fill_memory(self) -> None:
        if not self.records:
            return
        needed, available = self._estimate_bytes(), available_memory()
        if available is not None and needed > 0.8 * available:
            LOGGER.warning(
                f"--cache ram: the images need about {needed / 1e9:.1f} GB and {available / 1e9:.1f} GB are free; "
                "going on without, try --cache disk"
            )
            return
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            images = pool.map(self._load, range(len(self.records)))
            self._all = list(progress(images, total=len(self.records), desc="caching images in memory"))

    def _estimate_bytes(self) -> int:
        total = 0.0
        for record in self.records:
            reduction = sufficient_reduction(record.width, record.height, self.img_size)
            factor = self.img_size / max(record.width, record.height) if self.exact else 1 / reduction
            total += 3 * record.width * record.height * factor**2
        return int(total)

    def _cache_file(self, path: str, kind: str) -> Path:
        source = Path(path)
        return source.parent.with_name(f"{source.parent.name}.pixels") / f"{source.name}.{kind}.npy"

    def _make_cache_folders(self) -> None:
        folders = {self._cache_file(record.path, "").parent for record in self.records}
        for folder in sorted(folders):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(
                    f"--cache disk: cannot write to {str(folder)!r} ({error.strerror}); use --cache ram"
                ) from error
            if not os.access(folder, os.W_OK):
                raise UserError(f"--cache disk: cannot write to {str(folder)!r}; use --cache ram")

    def _load_from_disk_cache(self, index: int) -> np.ndarray | None:
        record = self.records[index]
        reduction = sufficient_reduction(record.width, record.height, self.img_size)
        file = self._cache_file(record.path, f"long{self.img_size}" if self.exact else f"by{reduction}")
        try:
            if file.stat().st_mtime_ns >= os.stat(record.path).st_mtime_ns:
                return np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            pass  # not there yet, or broken: written anew below
        image = self._load(index)
        if image is not None:
            write_array(file, image)
        return image


def write_array(file: Path, array: np.ndarray) -> None:
    """Writes an .npy file that other processes see either whole or not at all; a full disk costs only the file."""
    part = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        with open(part, "wb") as stream:
            np.save(stream, array)
        os.replace(part, file)
    except OSError as error:
        part.unlink(missing_ok=True)
        LOGGER.warning(f"--cache disk: {str(file)!r} not written: {error.strerror}")


def available_memory() -> int | None:
    """Bytes of memory that can be used without swapping, or None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None
