"""From image folders to a checked index: every image and label file is looked at once, and the bad ones are named."""

from __future__ import annotations

import functools
import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from data.decoding.files import read_regular, reason
from data.decoding.images import NOT_FOUND, check_image, find_images
from data.index_cache import NO_LABEL_FILE, CheckedImage, Issue, digest, read_cache, write_cache
from data.label_rows import (
    CLASS_TOO_LARGE,
    LABEL_FAULTS,
    MAX_LABEL_BYTES,
    UNREADABLE_LABELS,
    label_path,
    parse_labels,
    unusable_labels,
)
from data.lists import walk_files
from data.records import DatasetIndex, ImageRecord, Problem
from utils.errors import UserError
from utils.logging import LOGGER, progress
from utils.text import printable, shown_path

__all__ = ["DatasetIndex", "ImageRecord", "Problem", "build_index"]

ORPHAN = "label file without image"
SHARED = "label file of several images"
BEYOND_LINK = "labels beyond a link"

CHUNK = 256  # images a thread checks before it asks for more
MAX_NAMES = 1000  # characters of the sources in a message

_NO_LABELS = np.zeros((0, 5), np.float32)
_NO_LINES = np.zeros(0, np.int32)


def build_index(
    sources: Sequence[Path],
    nc: int,
    *,
    single_class: bool = False,
    cache: bool = True,
    need_boxes: bool = False,
    labels: bool = True,
    quiet: bool = False,
    prefix: str = "",
) -> DatasetIndex:
    """Finds the images of one split, reads their labels and checks both.

    What is bad is left out, and training goes on without it: a broken image as a whole, a broken label row by itself.
    An image without a label file, or with an empty one, is a background. An image whose label file cannot be read is
    left out, as nobody knows what is in it.

    Args:
        sources: folders (searched recursively) and .txt lists of images.
        nc: number of classes; a row of a class >= nc is left out.
        single_class: make every class 0, whatever its number was.
        cache: keep what was checked for the next run, beside the labels folder, or in ~/.cache where that
            is read-only.
        need_boxes: a set without a single box is an error.
        labels: read the label files; without it every image is a background.
        quiet: do not print what was found wrong.
        prefix: what the split is called in messages, such as "train".

    Raises:
        UserError: there is no usable image; most labels are of a class >= nc; no box although one is needed.
    """
    where = f"{prefix}: " if prefix else ""
    names = printable(", ".join(str(source) for source in sources), MAX_NAMES) or "an empty list of folders"
    images, problems = find_images(sources)
    num_found = len(images) + len(problems)
    if not num_found:
        raise UserError(f"{where}no images in {names}; correct the path in the data yaml")
    entries = _check_all(images, sources, cache, labels, f"{where}checking {len(images)} images")
    issues = ((entry.path, issue) for entry in entries for issue in entry.issues)
    problems += [_problem(path, issue) for path, issue in issues if labels or _of_image(issue)]
    usable = [entry for entry in entries if entry.width and (entry.has_usable_labels or not labels)]
    if not usable:
        raise UserError(f"{where}none of the {num_found} images of {names} can be used, first: {problems[0]}")
    if labels:
        records, out_of_range = _records(usable, nc, single_class, where)
        problems += [*_shared(entries), *_beyond_links(usable), *_orphans(sources, entries), *out_of_range]
    else:
        records = [ImageRecord(entry.path, entry.width, entry.height, _NO_LABELS) for entry in usable]
    index = DatasetIndex(records, problems, _counts(usable, records, num_found), _content_hash(usable))
    if need_boxes and not index.counts["boxes"]:
        first = f"first of {len(problems)} problems: {problems[0]}" if problems else "add labels, or correct the path"
        expected = f"labels are looked for as {printable(label_path(images[0]))}"
        raise UserError(f"{where}{len(images)} images but not one box; {expected}; {first}")
    if problems and not quiet:
        hint = "\n  (python -m data.audit --data ... lists every one)" if labels else ""
        LOGGER.warning(f"{where}{index.summary()}{hint}")
    return index


def _check_all(images: list[str], sources: Sequence[Path], cache: bool, labels: bool, title: str) -> list[CheckedImage]:
    known = read_cache(sources, len(images)) if cache else {}
    chunks = [images[start : start + CHUNK] for start in range(0, len(images), CHUNK)]
    entries: list[CheckedImage] = []

    def check(chunk: list[str]) -> list[CheckedImage]:
        return [_check(path, known.get(path), labels) for path in chunk]

    with (
        ThreadPoolExecutor(max_workers=min(16, (os.cpu_count() or 1) + 4)) as pool,
        progress(total=len(images), desc=title, enabled=not known and len(images) > 1000) as bar,
    ):
        for checked in pool.map(check, chunks):
            entries += checked
            bar.update(len(checked))
    changed = len(entries) != len(known) or any(known.get(entry.path) is not entry for entry in entries)
    if cache and changed:
        write_cache(sources, entries)
    return entries


def _check(path: str, known: CheckedImage | None, with_labels: bool) -> CheckedImage:
    """Checks one image and its labels, or returns what is known of them when nothing has changed."""
    try:
        status = os.stat(path)
    except OSError as error:  # gone since it was found
        issue = (0, NOT_FOUND, f"{reason(error)}; left out")
        return CheckedImage(path, (0, 0), NO_LABEL_FILE, 0, 0, _NO_LABELS, _NO_LINES, (), (issue,))
    stamp = (status.st_size, status.st_mtime_ns)
    content: bytes | None = None
    fault = ""
    if with_labels:
        try:
            content = read_regular(label_path(path), MAX_LABEL_BYTES)
        except FileNotFoundError:
            pass
        except OSError as error:
            fault = reason(error)
    label_digest = NO_LABEL_FILE if content is None else digest(content)
    same_labels = known and known.label_digest == label_digest and known.has_usable_labels and not fault
    if known and known.stamp == stamp and (same_labels or not with_labels):
        return known
    image = check_image(path)
    issues: tuple[Issue, ...] = ((0, image.kind, image.detail),) if image.kind else ()
    size = (image.width, image.height)
    if not image.width or (content is None and not fault):
        return CheckedImage(path, stamp, label_digest, *size, _NO_LABELS, _NO_LINES, (), issues)
    parsed = parse_labels(content) if content is not None else unusable_labels(UNREADABLE_LABELS, fault)
    issues += parsed.issues
    return CheckedImage(path, stamp, label_digest, *size, parsed.labels, parsed.lines, parsed.segments, issues)


def _of_image(issue: Issue) -> bool:
    return issue[0] == 0 and issue[1] not in LABEL_FAULTS


def _problem(path: str, issue: Issue) -> Problem:
    line, kind, detail = issue
    return Problem(path if _of_image(issue) else label_path(path), line or None, kind, detail)


def _shared(entries: list[CheckedImage]) -> list[Problem]:
    """Label files that several images have, such as a.jpg and a.png in one folder."""
    images: dict[str, list[str]] = defaultdict(list)
    for entry in entries:
        if entry.label_digest != NO_LABEL_FILE:
            images[label_path(entry.path)].append(os.path.basename(entry.path))
    remedy = "give each a name of its own, or remove all but one"
    return [
        Problem(path, None, SHARED, f"its rows count for {' and '.join(map(shown_path, names[:3]))} alike; {remedy}")
        for path, names in images.items()
        if len(names) > 1
    ]


def _beyond_links(entries: list[CheckedImage]) -> list[Problem]:
    """Images without a label file that have one where a link leads to."""
    problems = []
    real_folder = functools.cache(os.path.realpath)
    for entry in entries:
        folder, name = os.path.split(entry.path)
        is_link = os.path.islink(entry.path)
        if entry.label_digest != NO_LABEL_FILE or (real_folder(folder) == folder and not is_link):
            continue
        here = label_path(entry.path)
        there = label_path(os.path.realpath(entry.path) if is_link else os.path.join(real_folder(folder), name))
        if there != here and os.path.isfile(there):
            detail = f"taken as a background, as {shown_path(here)} is not there, but {shown_path(there)} is"
            problems.append(Problem(entry.path, None, BEYOND_LINK, detail))
    return problems


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
                problems.append(Problem(label_path(entry.path), line, CLASS_TOO_LARGE, detail))
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
        paths = (path for path in walk_files(labels_folder) if path.lower().endswith(".txt") and path not in wanted)
        orphans = sorted(path for path in paths if os.path.basename(path) != "classes.txt")
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
