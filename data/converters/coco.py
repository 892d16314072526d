"""Reading annotations in COCO's form: one JSON file a split."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from data.config import MAX_CLASSES, SPLITS
from data.converters.writing import AnnotatedImage, Annotation, Report, assign_splits, class_name, numbers, stated_size
from utils.errors import UserError
from utils.paths import existing_file, read_bounded
from utils.text import printable, shown, shown_path

MAX_BYTES = 4 << 30
READABLE = "a readable image_id, category_id and bbox"
CROWDS = "crowd regions (--keep-crowd keeps them)"


def split_of(spec: str) -> tuple[str, Path]:
    """Split and file of an --annotations argument: "val=a.json", or a file whose name tells, instances_val2017.json."""
    split, equals, file = spec.partition("=")
    if equals and split in SPLITS:
        return split, Path(file)
    found = [name for name in SPLITS if name in Path(spec).stem.lower()]
    return (found[0] if len(found) == 1 else "train"), Path(spec)


def read_coco(
    annotations: Sequence[tuple[str, Path]],
    image_folder: Path,
    report: Report,
    *,
    ratios: Sequence[float] | None = None,
    seed: int = 0,
    keep_crowd: bool = False,
    segments: bool = False,
) -> tuple[list[AnnotatedImage], list[str]]:
    """Reads COCO files. Category numbers, which may have gaps, become 0, 1, 2, ... in their order.

    An entry that cannot be read is left out and counted.

    An image is looked for as <folder>/<file_name>, then in a folder of the split's name (val), or of the annotation
    file's (val2017 for instances_val2017.json).

    Args:
        annotations: (split, JSON file).
        image_folder: where the images lie.
        report: is added to.
        ratios: deal all images to splits in these ratios, whatever the files' splits.
        seed: for `ratios`.
        keep_crowd: keep regions marked as iscrowd, which hold many objects in one box.
        segments: keep the outline of an object that consists of one polygon.

    Returns:
        The images, and the class names.

    Raises:
        UserError: a file is missing or not in COCO's form; files disagree on a category.
    """
    documents = [(split, path, _load(path)) for split, path in annotations]
    categories: dict[int | str, str] = {}
    for _, path, document in documents:
        _add_categories(categories, document["categories"], path)
    names = _distinct_names(categories, report)
    images = []
    for split, path, document in documents:
        folders = [image_folder, image_folder / split, image_folder / path.stem.split("_")[-1]]
        entries = _images(document["images"], report, path)
        of_image = _annotations(document["annotations"], categories, entries, keep_crowd, segments, report, path)
        for number, entry in entries.items():
            source, name = _find_image(entry["file_name"], folders)
            size = stated_size(entry.get("width"), entry.get("height"))
            images.append(AnnotatedImage(source, name, split, tuple(of_image[number]), size))
    if ratios:
        dealt = assign_splits([image.name for image in images], ratios, seed)
        images = [replace(image, split=dealt[image.name]) for image in images]
    return images, names


def _load(path: Path) -> dict[str, Any]:
    existing_file(path, "--annotations")
    try:
        document = json.loads(read_bounded(path, MAX_BYTES, f"--annotations {shown_path(path)}"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{shown_path(path)} is not valid JSON ({printable(error, 100)})") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(document, dict) or not isinstance(document.get(key), list):
            raise UserError(f"{shown_path(path)} has no list {key!r}; expected COCO's instance annotations")
    return document


def _is_id(value: Any) -> TypeGuard[int | str]:
    """Whether a value can be the number of an image or a category; some tools write them as text."""
    return isinstance(value, int | str) and not isinstance(value, bool)


def _add_categories(categories: dict[int | str, str], entries: list[Any], path: Path) -> None:
    where = shown_path(path)
    for entry in entries:
        number, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (None, None)
        if not _is_id(number) or not isinstance(name, str):
            raise UserError(f"{where}: a category is {shown(entry)}; expected an id and a name such as 1 and 'cat'")
        name = class_name(name)
        if not name:
            raise UserError(f"{where}: the name of category {shown(number)} is empty or too long; correct it")
        if categories.setdefault(number, name) != name:
            both = f"{shown(name)} here and {shown(categories[number])}"
            raise UserError(f"{where}: category {shown(number)} is {both} in another file or entry")
    if len(categories) > MAX_CLASSES:
        raise UserError(f"{where}: more than {MAX_CLASSES} categories")


def _distinct_names(categories: Mapping[int | str, str], report: Report) -> list[str]:
    """The class names in the order of their numbers. Categories of one name are one class."""
    names: dict[str, None] = {}
    for number in sorted(categories, key=lambda number: (isinstance(number, str), number)):
        if categories[number] in names:
            report.leave_out("categories of a name that another has; they are one class", shown(categories[number]))
        names[categories[number]] = None
    return list(names)


def _images(entries: list[Any], report: Report, path: Path) -> dict[int | str, dict[str, Any]]:
    """The entry of each image by its number."""
    found: dict[int | str, dict[str, Any]] = {}
    for entry in entries:
        number, name = (entry.get("id"), entry.get("file_name")) if isinstance(entry, dict) else (None, None)
        if not _is_id(number) or not isinstance(name, str) or not name:
            report.leave_out("images without a readable id and file_name", f"{path}: {shown(entry)}")
        elif number in found:
            report.leave_out("images of an id that another has", f"{path}: {shown(number)}")
        else:
            found[number] = entry
    return found


def _find_image(name: str, folders: Sequence[Path]) -> tuple[Path, str]:
    """Where an image lies, and its name with forward slashes; Windows' own are understood where the file says so."""
    spellings = [name, name.replace("\\", "/")] if "\\" in name else [name]
    candidates = [(folder / spelling, spelling) for spelling in spellings for folder in folders]
    return next((candidate for candidate in candidates if os.path.isfile(candidate[0])), candidates[0])


def _annotations(
    entries: list[Any],
    categories: Mapping[int | str, str],
    images: Collection[int | str],
    keep_crowd: bool,
    segments: bool,
    report: Report,
    file: Path,
) -> dict[int | str, list[Annotation]]:
    """The objects of each image."""
    of_image: dict[int | str, list[Annotation]] = defaultdict(list)
    readable = 0
    for entry in entries:
        fields = entry if isinstance(entry, dict) else {}
        where = f"{file}, annotation {shown(fields.get('id', '?'))}"
        image, category = fields.get("image_id"), fields.get("category_id")
        box = numbers(fields.get("bbox"), 4)
        if box is None or not _is_id(image) or not _is_id(category):
            report.leave_out(f"objects without {READABLE}", where)
            continue
        readable += 1
        if _is_crowd(fields) and not keep_crowd:
            report.leave_out(CROWDS, where)
        elif category not in categories:
            report.leave_out("objects of a category that the file does not define", where)
        elif image not in images:
            report.leave_out("objects of an image that the file does not list", where)
        else:
            x, y, width, height = box
            polygon = _polygon(fields.get("segmentation"), report, where) if segments else None
            of_image[image].append(Annotation(categories[category], (x, y, x + width, y + height), polygon))
    if entries and not readable:
        raise UserError(
            f"{shown_path(file)}: none of its {len(entries)} annotations has {READABLE}; "
            "expected COCO's instance annotations"
        )
    return of_image


def _is_crowd(entry: Mapping[str, Any]) -> bool:
    return entry.get("iscrowd") not in (None, 0, "0", "", False)


def _polygon(outline: Any, report: Report, where: str) -> np.ndarray | None:
    """The outline of an object of one polygon; None for several, and for a mask, whose box is written."""
    if outline is None or isinstance(outline, dict) or outline == []:
        return None
    if not isinstance(outline, list) or not all(isinstance(part, list) for part in outline):
        report.leave_out("outlines that are no polygons (their boxes are written)", where)
        return None
    if len(outline) != 1:
        return None
    points = numbers(outline[0], len(outline[0]))
    if points is None or len(points) not in range(6, 10**6, 2):
        report.leave_out("outlines that are no polygons (their boxes are written)", where)
        return None
    return np.array(points, np.float64).reshape(-1, 2)
