"""Reading annotations in COCO's form: one JSON file a split."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.config import SPLITS
from data.conversion import AnnotatedImage, Annotation, Report, assign_splits
from utils.errors import UserError

REQUIRED_FIELDS = {
    "images": {"id", "file_name"},
    "annotations": {"image_id", "category_id", "bbox"},
    "categories": {"id", "name"},
}


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
    categories: dict[int, str] = {}
    for _, path, document in documents:
        for category in document["categories"]:
            number, name = category["id"], str(category["name"])
            if categories.setdefault(number, name) != name:
                raise UserError(
                    f"{path}: category {number} is {name!r} here and {categories[number]!r} in another file"
                )
    images = []
    for split, path, document in documents:
        of_image: dict[Any, list[Annotation]] = defaultdict(list)
        for entry in document["annotations"]:
            annotation = _annotation(entry, categories, keep_crowd, segments, report, path)
            if annotation is not None:
                of_image[entry["image_id"]].append(annotation)
        folders = [image_folder, image_folder / split, image_folder / path.stem.split("_")[-1]]
        for entry in document["images"]:
            candidates = [folder / entry["file_name"] for folder in folders]
            source = next((candidate for candidate in candidates if candidate.is_file()), candidates[0])
            images.append(AnnotatedImage(source, entry["file_name"], split, tuple(of_image[entry["id"]])))
    if ratios:
        dealt = assign_splits([image.name for image in images], ratios, seed)
        images = [AnnotatedImage(image.source, image.name, dealt[image.name], image.annotations) for image in images]
    return images, [categories[number] for number in sorted(categories)]


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"--annotations {str(path)!r} does not exist; check the path")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error})") from error
    for key, fields in REQUIRED_FIELDS.items():
        entries = document.get(key) if isinstance(document, dict) else None
        if not isinstance(entries, list):
            raise UserError(f"{path} has no list {key!r}; expected COCO's instance annotations")
        for entry in entries:
            if not isinstance(entry, dict) or not fields <= entry.keys():
                raise UserError(f"{path}: an entry of {key!r} lacks one of {', '.join(sorted(fields))}")
    return document


def _annotation(
    entry: Mapping[str, Any],
    categories: Mapping[int, str],
    keep_crowd: bool,
    segments: bool,
    report: Report,
    file: Path,
) -> Annotation | None:
    where = f"{file}, annotation {entry.get('id', '?')}"
    if entry.get("iscrowd", 0) and not keep_crowd:
        report.leave_out("crowd regions (--keep-crowd keeps them)", where)
        return None
    name = categories.get(entry["category_id"])
    if name is None:
        report.leave_out("objects of a category that the file does not define", where)
        return None
    try:
        x, y, width, height = map(float, entry["bbox"])
    except (TypeError, ValueError):
        report.leave_out("objects without a readable bbox", where)
        return None
    polygon = None
    outline = entry.get("segmentation")
    if segments and isinstance(outline, list) and len(outline) == 1 and len(outline[0]) in range(6, 10**6, 2):
        polygon = np.array(outline[0], np.float64).reshape(-1, 2)
    return Annotation(name, (x, y, x + width, y + height), polygon)
