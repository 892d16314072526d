"""Image files of a data set: finding them, and checking whether one can be used."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import cv2

from data.decoding.decode import MAX_FILE_BYTES, ImageError, ImageMemoryError, decode_bytes
from data.decoding.files import open_regular, read_regular, reason
from data.decoding.image_header import Header, is_cut_short, read_header
from data.decoding.jpeg_header import END_OF_JPEG, JPEG, read_jpeg_header
from data.decoding.tiff_header import IN_DOUBT, UPRIGHT
from data.lists import MAX_PATH, listed_path, read_lines, walk_files
from data.records import Problem
from utils.errors import UserError
from utils.text import shown_path

IMAGE_SUFFIXES = frozenset({".bmp", ".dng", ".jpeg", ".jpg", ".mpo", ".pfm", ".png", ".tif", ".tiff", ".webp"})
MIN_SIDE = 10

UNREADABLE = "unreadable image"
TRUNCATED = "truncated image"
TOO_SMALL = "tiny image"
NO_MEMORY = "image too large for the memory"
ROTATED = "rotated by EXIF"
NOT_FOUND = "missing image"
NOT_AN_IMAGE = "not an image"
NOT_A_FILE = "not a file"
CLOSED_FOLDER = "unreadable folder"

LARGE = 64 << 20  # pixels or bytes; such images are decoded one at a time
_one_large = threading.Lock()


@dataclass(frozen=True, slots=True)
class ImageCheck:
    """Size of an image in pixels, as it is decoded; (0, 0) if it cannot be used. `kind` is "" for a sound one."""

    width: int
    height: int
    kind: str = ""
    detail: str = ""


def find_images(sources: Sequence[Path]) -> tuple[list[str], list[Problem]]:
    """Image files of folders (recursively) and .txt lists, sorted, each once.

    Links to folders are followed, but no folder is entered twice: links that lead back or to each other add nothing.
    A folder is preferred to a link that leads to it.

    In a list, a leading "./" stands for the list's own folder. Any other relative path counts from the working folder,
    or from the list's folder where the first does not exist.

    Args:
        sources: folders and .txt files.

    Returns:
        The images, and the problems: what is listed or lies there like an image, but is not there, is no file or has
        no image suffix; and folders that cannot be looked into.

    Raises:
        UserError: a source does not exist, or is neither a folder nor a .txt list.
    """
    folders: list[str] = []
    candidates: list[str] = []
    rejected: list[Problem] = []
    for source in sources:
        if os.path.isdir(source):
            folders.append(os.path.abspath(source))
        elif not os.path.exists(source):
            raise UserError(f"images {shown_path(source)} do not exist; correct the path in the data yaml")
        elif source.suffix.lower() != ".txt":
            raise UserError(f"images {shown_path(source)}: expected a folder or a .txt list of image paths")
        else:
            beside = os.path.dirname(os.path.abspath(source))
            candidates += [listed_path(line, beside) for line in read_lines(source, "image list")]
    closed: list[tuple[str, OSError]] = []
    candidates += [path for path in walk_files(*folders, closed=closed) if _is_named_like_an_image(path)]
    for folder, error in closed:
        rejected.append(Problem(folder, None, CLOSED_FOLDER, f"{reason(error)}; its images are left out"))
    images = []
    for path in sorted(set(candidates)):
        if len(path) > MAX_PATH or not _is_named_like_an_image(path):
            rejected.append(Problem(path[:MAX_PATH], None, NOT_AN_IMAGE, "listed, but left out"))
        elif os.path.isfile(path):
            images.append(path)
        else:
            rejected.append(_no_file(path))
    return images, rejected


def _is_named_like_an_image(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES


def _no_file(path: str) -> Problem:
    if os.path.exists(path):
        return Problem(path, None, NOT_A_FILE, "a FIFO, a device or the like; left out")
    if os.path.islink(path):
        return Problem(path, None, NOT_FOUND, f"the link leads to {_target(path)}, which is not there; left out")
    return Problem(path, None, NOT_FOUND, "left out")


def _target(link: str) -> str:
    try:
        return shown_path(os.readlink(link))
    except OSError:
        return "nowhere"


def check_image(path: str) -> ImageCheck:
    """Checks whether an image can be used, and reads its size.

    It is decoded, which alone shows that OpenCV can read it; but for an upright baseline JPEG that is sound from its
    header to its end, with which that cannot fail.
    """
    try:
        with open_regular(path) as stream:
            header = read_jpeg_header(stream)
            if header and header.sound and header.orientation == UPRIGHT and header.width * header.height <= LARGE:
                stream.seek(-len(END_OF_JPEG), os.SEEK_END)
                if stream.read() == END_OF_JPEG:
                    return _sized(header.width, header.height)
            is_large = os.fstat(stream.fileno()).st_size > LARGE
        with _one_large if is_large else nullcontext():
            return _check_content(read_regular(path, MAX_FILE_BYTES))
    except OSError as error:
        return ImageCheck(0, 0, UNREADABLE, f"{reason(error)}; left out")


def _check_content(content: bytes) -> ImageCheck:
    header = read_header(content)
    large = len(content) <= LARGE and (header is None or header.width * header.height > LARGE)
    try:
        with _one_large if large else nullcontext():
            width, height = _decoded_size(content, header)
    except ImageMemoryError as error:
        return ImageCheck(0, 0, NO_MEMORY, f"{error}; left out")
    except ImageError as error:
        if is_cut_short(content):
            return ImageCheck(0, 0, TRUNCATED, "its end is missing; left out")
        return ImageCheck(0, 0, UNREADABLE, f"{error}; left out")
    check = _sized(width, height)
    if not check.width or header is None or header.orientation in (UPRIGHT, IN_DOUBT):
        return check
    detail = f"orientation {header.orientation}; the labels must fit the upright image of {width} x {height}"
    return ImageCheck(width, height, ROTATED, detail)


def _decoded_size(content: bytes, header: Header | None) -> tuple[int, int]:
    """Width and height of an image as it is decoded."""
    small = header and header.width * header.height <= LARGE  # a large one may exceed OpenCV's limit as a whole only
    if header and small and header.orientation != IN_DOUBT and content.startswith(JPEG):
        width, height = (header.width, header.height)[:: -1 if header.orientation > 4 else 1]
        if decode_bytes(content, cv2.IMREAD_REDUCED_COLOR_8).shape[:2] == (-(-height // 8), -(-width // 8)):
            return width, height
    height, width = decode_bytes(content).shape[:2]
    return width, height


def _sized(width: int, height: int) -> ImageCheck:
    if min(width, height) < MIN_SIDE:
        return ImageCheck(0, 0, TOO_SMALL, f"{width} x {height} pixels, fewer than {MIN_SIDE} on a side; left out")
    return ImageCheck(width, height)
