"""Image files of a data set: finding them, and checking one without decoding it."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
from PIL import Image

from utils.errors import UserError

IMAGE_SUFFIXES = frozenset({".bmp", ".dng", ".jpeg", ".jpg", ".mpo", ".pfm", ".png", ".tif", ".tiff", ".webp"})
MIN_SIDE = 10

UNREADABLE = "unreadable image"
TRUNCATED = "truncated image"
TOO_SMALL = "tiny image"
ROTATED = "rotated by EXIF"
NOT_FOUND = "missing image"
NOT_AN_IMAGE = "not an image"

_ORIENTATION_TAG = 0x0112
_PIL_ERRORS = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True, slots=True)
class ImageCheck:
    """Size of an image in pixels, as cv2.imread gives it; (0, 0) if it cannot be used. `kind` is "" for a sound one."""

    width: int
    height: int
    kind: str = ""
    detail: str = ""


def find_images(sources: Sequence[Path]) -> tuple[list[str], list[tuple[str, str]]]:
    """Image files of folders (recursively) and .txt lists, sorted, each once.

    In a list, a leading "./" stands for the list's own folder. Any other relative path counts from the working folder,
    or from the list's folder where the first does not exist.

    Args:
        sources: folders and .txt files.

    Returns:
        The images, and (path, kind) of each listed file that is not there or has no image suffix.

    Raises:
        UserError: a source does not exist, or is neither a folder nor a .txt list.
    """
    images: dict[str, None] = {}
    rejected: list[tuple[str, str]] = []
    for source in sources:
        if source.is_dir():
            images.update(dict.fromkeys(_walk(os.path.abspath(source))))
            continue
        if not source.exists():
            raise UserError(f"images {str(source)!r} do not exist; correct the path in the data yaml")
        if source.suffix.lower() != ".txt":
            raise UserError(f"images {str(source)!r}: expected a folder or a .txt list of image paths")
        for path in _read_list(source):
            if os.path.splitext(path)[1].lower() not in IMAGE_SUFFIXES:
                rejected.append((path, NOT_AN_IMAGE))
            elif not os.path.isfile(path):
                rejected.append((path, NOT_FOUND))
            else:
                images[path] = None
    return sorted(images), rejected


def _walk(folder: str) -> list[str]:
    found = []
    for parent, _, names in os.walk(folder, followlinks=True):
        found += [os.path.join(parent, name) for name in names if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES]
    return found


def _read_list(source: Path) -> list[str]:
    folder = str(source.parent.absolute())
    paths = []
    for line in source.read_text(encoding="utf-8-sig", errors="replace").splitlines():
        line = line.strip()
        if not line:
            continue
        if line.startswith("./"):
            paths.append(os.path.join(folder, line[2:]))
        elif os.path.isabs(line) or os.path.exists(line):
            paths.append(os.path.abspath(line))
        else:
            paths.append(os.path.join(folder, line))
    return paths


def check_image(path: str) -> ImageCheck:
    """Reads an image's size from its header and looks whether the file is complete.

    Pixels are decoded only where the header leaves a doubt: no end marker where one belongs, an EXIF rotation, a format
    that Pillow does not know.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            orientation = image.getexif().get(_ORIENTATION_TAG, 1)
            image_format = image.format or ""
    except _PIL_ERRORS as error:
        return _check_by_decoding(path, str(error))
    try:
        if not _ends_properly(path, image_format):
            with Image.open(path) as image:
                image.load()
    except _PIL_ERRORS as error:
        return ImageCheck(0, 0, TRUNCATED, f"{error}; left out")
    if min(width, height) < MIN_SIDE:
        return ImageCheck(0, 0, TOO_SMALL, f"{width} x {height} pixels, fewer than {MIN_SIDE} on a side; left out")
    if orientation in range(2, 9):
        turned = _check_by_decoding(path, "cannot be decoded")
        if turned.width:
            detail = (
                f"orientation {orientation}; the labels must fit the upright image of {turned.width} x {turned.height}"
            )
            return ImageCheck(turned.width, turned.height, ROTATED, detail)
        return turned
    return ImageCheck(width, height)


def _check_by_decoding(path: str, reason: str) -> ImageCheck:
    image = cv2.imread(path, cv2.IMREAD_COLOR)
    if image is None:
        return ImageCheck(0, 0, UNREADABLE, f"{reason}; left out")
    height, width = image.shape[:2]
    if min(width, height) < MIN_SIDE:
        return ImageCheck(0, 0, TOO_SMALL, f"{width} x {height} pixels, fewer than {MIN_SIDE} on a side; left out")
    return ImageCheck(width, height)


def _ends_properly(path: str, image_format: str) -> bool:
    """Whether the file is as long as its format says. False means in doubt: only decoding can tell."""
    with open(path, "rb") as stream:
        if image_format == "WEBP":
            length = struct.unpack("<I", stream.read(8)[4:])[0]
            return stream.seek(0, os.SEEK_END) >= length + 8
        if stream.seek(0, os.SEEK_END) < 12:
            return False
        stream.seek(-12, os.SEEK_END)
        tail = stream.read()
    if image_format in ("JPEG", "MPO"):
        return tail.endswith(b"\xff\xd9")
    return image_format == "PNG" and tail[4:8] == b"IEND"
