"""From image folders to a checked index: every image and label file is looked at once, and the bad ones are named."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from data.images import check_image, find_images
from data.index_cache import NO_LABEL_FILE, CheckedImage, Issue, digest, read_cache, write_cache
from data.label_rows import label_path, parse_labels
from data.records import DatasetIndex, ImageRecord, Problem
from utils.errors import UserError
from utils.logging import LOGGER, progress

__all__ = ["DatasetIndex", "ImageRecord", "Problem", "build_index"]

CLASS_OUT_OF_RANGE = "class out of range"
ORPHAN = "label file without image"

CHUNK = 256  # images a thread checks before it asks for more

_NO_LABELS = np.zeros((0, 5), np.float32)
_NO_LINES = np.zeros(0, np.int32)


def build_index(
    sources: Sequence[Path],
    nc: int,
    *,
    single_class: bool = False,
    cache: bool = True,
    need_boxes: bool = False,
    quiet: bool = False,
    prefix: str = "",
) -> DatasetIndex:
    """Finds the images of one split, reads their labels and checks both.

    What is bad is left out, and training goes on without it: a broken image as a whole, a broken label row by itself.
    An image without a label file, or with an empty one, is a background.

    Args:
        sources: folders (searched recursively) and .txt lists of images.
        nc: number of classes; a row of a class >= nc is left out.
        single_class: make every class 0, whatever its number was.
        cache: keep what was checked for the next run, beside the labels folder, or in ~/.cache where that
            is read-only.
        need_boxes: a set without a single box is an error.
        quiet: do not print what was found wrong.
        prefix: what the split is called in messages, such as "train".

    Raises:
        UserError: there is no usable image; most labels are of a class >= nc; no box although one is needed.
    """
    where = f"{prefix}: " if prefix else ""
    names = ", ".join(str(source) for source in sources)
    images, rejected = find_images(sources)
    if not images:
        raise UserError(f"{where}no images in {names or 'an empty list of folders'}; correct the path in the data yaml")
    entries = _check_all(images, sources, cache, f"{where}checking {len(images)} images")
    problems = [Problem(path, None, kind, "listed, but left out") for path, kind in rejected]
    problems += [_problem(entry.path, issue) for entry in entries for issue in entry.issues]
    problems += _orphans(sources, entries)
    usable = [entry for entry in entries if entry.width]
    if not usable:
        raise UserError(f"{where}none of the {len(images)} images of {names} can be used, first: {problems[0]}")
    records, out_of_range = _records(usable, nc, single_class, where)
    problems += out_of_range
    index = DatasetIndex(records, problems, _counts(usable, records, len(images)), _content_hash(usable))
    if need_boxes and not index.counts["boxes"]:
        reason = f"first of {len(problems)} problems: {problems[0]}" if problems else "add labels, or correct the path"
        expected = f"labels are looked for as {label_path(images[0])}"
        raise UserError(f"{where}{len(images)} images but not one box; {expected}; {reason}")
    if problems and not quiet:
        LOGGER.warning(f"{where}{index.summary()}\n  (python -m data.audit --data ... lists every one)")
    return index


def _check_all(images: list[str], sources: Sequence[Path], cache: bool, title: str) -> list[CheckedImage]:
    known = read_cache(sources) if cache else {}
    chunks = [images[start : start + CHUNK] for start in range(0, len(images), CHUNK)]
    entries: list[CheckedImage] = []
    with (
        ThreadPoolExecutor(max_workers=min(16, (os.cpu_count() or 1) + 4)) as pool,
        progress(total=len(images), desc=title, enabled=not known and len(images) > 1000) as bar,
    ):
        for checked in pool.map(lambda chunk: [_check(path, known.get(path)) for path in chunk], chunks):
            entries += checked
            bar.update(len(checked))
    changed = len(entries) != len(known) or any(known.get(entry.path) is not entry for entry in entries)
    if cache and changed:
        write_cache(sources, entries)
    return entries


def _check(path: str, known: CheckedImage | None) -> CheckedImage:
    """Checks one image and its labels, or returns what is known of them when nothing has changed."""
    status = os.stat(path)
    stamp = (status.st_size, status.st_mtime_ns)
    content: bytes | None = None
    unreadable: tuple[Issue, ...] = ()
    try:
        with open(label_path(path), "rb") as stream:
            content = stream.read()
    except FileNotFoundError:
        pass
    except OSError as error:
        unreadable = ((0, "unreadable label file", f"{error.strerror}; taken as a background"),)
    label_digest = NO_LABEL_FILE if content is None else digest(content)
    if known and known.stamp == stamp and known.label_digest == label_digest:
        return known
    image = check_image(path)
    issues: tuple[Issue, ...] = ((0, image.kind, image.detail),) if image.kind else ()
    if not image.width or content is None:
        issues += unreadable
        return CheckedImage(path, stamp, label_digest, image.width, image.height, _NO_LABELS, _NO_LINES, (), issues)
    parsed = parse_labels(content)
    issues += parsed.issues
    size = (image.width, image.height)
    return CheckedImage(path, stamp, label_digest, *size, parsed.labels, parsed.lines, parsed.segments, issues)


def _problem(path: str, issue: Issue) -> Problem:
    line, kind, detail = issue
    return Problem(label_path(path), line, kind, detail) if line else Problem(path, None, kind, detail)


def _records(
    entries: list[CheckedImage], nc: int, single_class: bool, where: str
) -> tuple[list[ImageRecord], list[Problem]]:
    """The records, without rows of classes that the data set does not have."""
    classes = np.concatenate([entry.labels[:, 0] for entry in entries])
    if single_class:
        nc = int(classes.max(initial=0)) + 1
    num_beyond = int((classes >= nc).sum())
    if 2 * num_beyond > len(classes):
        raise UserError(
            f"{where}{num_beyond} of {len(classes)} labels are of a class that nc = {nc} does not have (the largest is "
            f"{int(classes.max())}, they count from 0); correct nc and names in the data yaml"
        )
    records, problems = [], []
    for entry in entries:
        labels, segments = entry.labels, entry.segments
        beyond = labels[:, 0] >= nc
        if num_beyond and beyond.any():
            for line, label in zip(entry.lines[beyond].tolist(), labels[beyond]):
                detail = f"class {label[0]:.0f}, but nc = {nc}; row left out"
                problems.append(Problem(label_path(entry.path), line, CLASS_OUT_OF_RANGE, detail))
            segments = tuple(segment for segment, bad in zip(segments, beyond) if not bad)
            labels = labels[~beyond]
        if single_class:
            labels = labels * np.array([0, 1, 1, 1, 1], np.float32)
        records.append(ImageRecord(entry.path, entry.width, entry.height, labels, segments))
    return records, problems


def _orphans(sources: Sequence[Path], entries: list[CheckedImage]) -> list[Problem]:
    """Label files of folders that belong to no image. A list chooses among images, so its folder is not looked at."""
    wanted = {label_path(entry.path) for entry in entries}
    problems = []
    for source in sources:
        if not source.is_dir():
            continue
        images_folder = os.path.abspath(source)
        labels_folder = os.path.dirname(label_path(os.path.join(images_folder, "x.jpg")))
        if labels_folder == images_folder:  # labels beside the images: other .txt files may lie there
            continue
        for parent, _, names in os.walk(labels_folder, followlinks=True):
            paths = (os.path.join(parent, name) for name in sorted(names) if name.endswith(".txt"))
            orphans = [path for path in paths if path not in wanted and os.path.basename(path) != "classes.txt"]
            problems += [Problem(path, None, ORPHAN, "not used") for path in orphans]
    return problems


def _counts(entries: list[CheckedImage], records: list[ImageRecord], num_found: int) -> dict[str, int]:
    labelled = sum(len(record.labels) > 0 for record in records)
    missing = sum(entry.label_digest == NO_LABEL_FILE for entry in entries)
    return {
        "images": len(records),
        "dropped": num_found - len(records),
        "boxes": sum(len(record.labels) for record in records),
        "labelled": labelled,
        "empty": len(records) - labelled - missing,
        "missing": missing,
    }


def _content_hash(entries: list[CheckedImage]) -> str:
    """SHA-256 over names below the common folder, sizes of the image files, and label bytes."""
    ends = (os.path.dirname(entries[0].path), os.path.dirname(entries[-1].path))  # of sorted paths
    folder = os.path.commonpath(ends)
    content = hashlib.sha256()
    for entry in entries:
        content.update(f"{entry.path[len(folder) :]}\0{entry.stamp[0]}\0".encode("utf-8", "surrogateescape"))
        content.update(entry.label_digest)
    return content.hexdigest()
