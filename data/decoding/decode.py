"""Reading images at the size that training needs, and keeping them in memory or on disk."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np

from data.decoding.files import read_regular, reason
from data.decoding.jpeg_header import JPEG
from data.records import ImageRecord
from utils.errors import UserError, unknown_name
from utils.logging import LOGGER, progress
from utils.paths import remove_dead_drafts, replacing
from utils.text import printable, shown_path

MAX_FILE_BYTES = 1 << 30
MAX_SHOWN = 120  # characters of what OpenCV says
REDUCED_JPEG = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
CACHES = ("ram", "disk")
RECENT_BYTES = 256 << 20  # holds a partner pool of images of about one megapixel


class ImageError(Exception):
    """A file that is no image, or none that OpenCV can read; the text says why."""


class ImageMemoryError(ImageError):
    """The memory does not suffice for an image."""


class UnreadableImageError(Exception):
    """An image of the data set that cannot be decoded (any more).

    Attributes:
        index: its place in the data set.
    """

    def __init__(self, index: int, path: str, why: str) -> None:
        super().__init__(f"image {shown_path(path)} cannot be read: {why}")
        self.index = index
        self.path = path


def sufficient_reduction(width: int, height: int, long_side: int) -> int:
    """The largest of 1, 2, 4, 8 by which an image can be reduced and still measure `long_side` pixels."""
    return max(r for r in REDUCED_JPEG if r == 1 or max(width, height) >= r * long_side)


def decode_bytes(content: bytes, flags: int = cv2.IMREAD_COLOR) -> np.ndarray:
    """Decodes the bytes of an image file, upright by its EXIF orientation: the one decoder of this software.

    Args:
        content: the whole file.
        flags: of cv2.imdecode, for three channels of 8 bits.

    Returns:
        uint8 BGR (H, W, 3).

    Raises:
        ImageError: OpenCV cannot read it.
    """
    if not content:
        raise ImageError("the file is empty")
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise ImageMemoryError("the memory does not suffice for it") from error
        what = printable(error.err or error, MAX_SHOWN)
        raise ImageError("it has more pixels than OpenCV reads" if "CV_IO_MAX_IMAGE" in what else what) from error
    if image is None or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ImageError("OpenCV cannot decode it")
    return image


def decode_image(path: str, reduction: int = 1) -> np.ndarray:
    """Reads and decodes an image file, whatever its name is made of, upright by its EXIF orientation.

    Args:
        path: the image.
        reduction: 1, 2, 4 or 8: the size is divided by it. A JPEG is decoded at that size directly, in much less time.

    Returns:
        uint8 BGR (H, W, 3).

    Raises:
        ImageError: the file is not there, is no regular file, or is no image.
    """
    try:
        content = read_regular(path, MAX_FILE_BYTES)
    except OSError as error:
        raise ImageError(reason(error)) from error
    if reduction == 1 or content.startswith(JPEG):
        return decode_bytes(content, REDUCED_JPEG[reduction])
    image = decode_bytes(content)
    size = (max(image.shape[1] // reduction, 1), max(image.shape[0] // reduction, 1))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def fit_long_side(image: np.ndarray, long_side: int) -> np.ndarray:
    """Resizes an image so that its longer side measures `long_side`, averaging areas when it shrinks."""
    height, width = image.shape[:2]
    size = fitted_size(width, height, long_side)
    if size == (width, height):
        return image
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if max(size) < max(width, height) else cv2.INTER_LINEAR)


def fitted_size(width: int, height: int, long_side: int) -> tuple[int, int]:
    """Width and height of an image whose longer side is resized to `long_side`."""
    ratio = long_side / max(height, width)
    return max(int(width * ratio), 1), max(int(height * ratio), 1)


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
            UnreadableImageError: the file is gone, broken, or another image than the one that was checked.
        """
        image = self._all[index] if self._all else self._recent.get(index)
        if image is not None:
            return image
        try:
            image = self._load_from_disk_cache(index) if self.on_disk else self._load(index)
        except ImageError as error:
            raise UnreadableImageError(index, self.records[index].path, str(error)) from error
        if not self._all:
            self._remember(index, image)
        return image

    def _load(self, index: int) -> np.ndarray:
        record = self.records[index]
        reduction = 1 if self.exact else self._reduction(record)
        image = decode_image(record.path, reduction)
        if any(abs(n - side / reduction) >= 1 for n, side in zip(image.shape, (record.height, record.width))):
            now = f"{image.shape[1] * reduction} x {image.shape[0] * reduction}"
            raise ImageError(f"its size is {now}, but was {record.width} x {record.height} when it was checked")
        return fit_long_side(image, self.img_size) if self.exact else image

    def _load_if_readable(self, index: int) -> np.ndarray | None:
        try:
            return self._load(index)
        except ImageError:
            return None  # said when it is asked for

    def _reduction(self, record: ImageRecord) -> int:
        return sufficient_reduction(record.width, record.height, self.img_size)

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
            images = pool.map(self._load_if_readable, range(len(self.records)))
            self._all = list(progress(images, total=len(self.records), desc="caching images in memory"))

    def _estimate_bytes(self) -> int:
        total = 0.0
        for record in self.records:
            factor = self.img_size / max(record.width, record.height) if self.exact else 1 / self._reduction(record)
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
                    f"--cache disk: cannot write to {shown_path(folder)} ({error.strerror}); use --cache ram"
                ) from error
            if not os.access(folder, os.W_OK):
                raise UserError(f"--cache disk: cannot write to {shown_path(folder)}; use --cache ram")
            remove_dead_drafts(folder)

    def _load_from_disk_cache(self, index: int) -> np.ndarray:
        record = self.records[index]
        reduction = self._reduction(record)
        file = self._cache_file(record.path, f"long{self.img_size}" if self.exact else f"by{reduction}")
        if self.exact:
            sizes = [fitted_size(record.width, record.height, self.img_size)]
        else:  # a JPEG is rounded up, other formats down
            sizes = [(record.width // reduction, record.height // reduction)]
            sizes.append((-(-record.width // reduction), -(-record.height // reduction)))
        try:
            changed = os.stat(record.path).st_mtime_ns
        except OSError as error:
            raise ImageError(reason(error)) from error
        try:
            if file.stat().st_mtime_ns == changed:
                return read_pixels(file, sizes)
        except (OSError, ValueError):
            pass  # not there yet, or no longer what was written: written anew below
        image = self._load(index)
        write_pixels(file, image, changed)
        return image


def read_pixels(file: Path, sizes_wh: Sequence[tuple[int, int]]) -> np.ndarray:
    """An image that `write_pixels` wrote, as uint8 (H, W, 3) of one of the given widths and heights.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds something else.
    """
    headers = {(height, width): _pixel_header(height, width) for width, height in sizes_wh}
    content = read_regular(file, max(height * width * 3 + len(header) for (height, width), header in headers.items()))
    for (height, width), header in headers.items():
        if content.startswith(header) and len(content) == len(header) + height * width * 3:
            return np.frombuffer(bytearray(content), np.uint8, offset=len(header)).reshape(height, width, 3)
    raise ValueError("other pixels")


def _pixel_header(height: int, width: int) -> bytes:
    stream = BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": (height, width, 3)})
    return stream.getvalue()


def write_pixels(file: Path, image: np.ndarray, changed: int) -> None:
    """Writes an .npy file that other processes see either whole or not at all; a full disk costs only the file.

    Args:
        file: where.
        image: uint8 (H, W, 3).
        changed: modification time of the image file in ns; this one gets the same, so that a change is noticed.
    """
    try:
        with replacing(file, "wb") as stream:
            stream.write(_pixel_header(*image.shape[:2]))
            stream.write(np.ascontiguousarray(image).data)
            stream.flush()
            os.utime(stream.name, ns=(changed, changed))
    except OSError as error:
        LOGGER.warning(f"--cache disk: {shown_path(file)} not written: {reason(error)}")


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
