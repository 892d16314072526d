"""Detections as files: label text files in YOLO format, and COCO's JSON."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.config import load_class_names
from engine.inference.output import label_lines
from utils.errors import UserError
from utils.files import write_json
from utils.names import class_order
from utils.output_names import OutputNames, file_name
from utils.paths import REPOSITORY, replacing
from utils.text import shown, shown_path

# COCO's category numbers of the 80 classes in their usual order: 1 to 90, of which ten were never used.
COCO_CATEGORIES = tuple(i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))


class LabelWriter:
    """Writes a text file for each image that something was found in.

    Args:
        folder: of the files, which is made.
        with_confidence: write it at the end of each row.
        paths: all images, so that those with equal names get files of their own; see `utils.output_names`.
    """

    def __init__(self, folder: Path, with_confidence: bool = False, paths: Iterable[str] = ()) -> None:
        self.folder = folder
        self.with_confidence = with_confidence
        self.names = OutputNames(paths)
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, path: str, original_hw: tuple[int, int], detections: np.ndarray) -> None:
        """Writes the detections of the image `path` to <its stem>.txt."""
        if len(detections):
            lines = label_lines(detections, original_hw, self.with_confidence)
            with replacing(self.folder / file_name(self.names[path], ".txt")) as stream:
                stream.write("\n".join(lines) + "\n")


class CocoWriter:
    """Collects detections in COCO's results format.

    Args:
        categories: COCO's category number of each class.
        image_ids: COCO's number of each image by its path; see `image_ids` and `annotated_ids`.
    """

    def __init__(self, categories: Sequence[int], image_ids: Mapping[str, int | str]) -> None:
        self.categories = categories
        self.image_ids = image_ids
        self.records: list[dict[str, Any]] = []
        self.seen: list[int | str] = []

    def __call__(self, path: str, original_hw: tuple[int, int], detections: np.ndarray) -> None:
        """Adds the detections of the image `path`."""
        image_id = self.image_ids[path]
        self.seen.append(image_id)
        for x1, y1, x2, y2, confidence, category in detections.astype(np.float64).tolist():
            box = [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)]
            self.records.append(
                {
                    "image_id": image_id,
                    "category_id": int(self.categories[int(category)]),
                    "bbox": box,
                    "score": round(confidence, 5),
                }
            )

    def save(self, path: Path) -> None:
        """Writes everything collected as one JSON list."""
        write_json(path, self.records, indent=None)


def coco_categories(names: Sequence[str], where: str) -> list[int]:
    """COCO's category number of each of its 80 classes, in whatever order a data set has them.

    Raises:
        UserError: some of COCO's names stand elsewhere, and others are not COCO's.
    """
    order = class_order(names, load_class_names(REPOSITORY / "data" / "coco.yaml"), where, "COCO")
    return [COCO_CATEGORIES[place] for place in order or range(len(names))]


def image_ids(paths: Sequence[str]) -> dict[str, int | str]:
    """A number or name for each image, which no other has: its stem, as a number if it is one that no other is too."""
    names = OutputNames(paths)
    stems = {path: names[path] for path in paths}
    numbers = {stem: int(stem) for stem in stems.values() if stem.isdecimal()}
    counts = Counter(numbers.values())
    single = {stem: number for stem, number in numbers.items() if counts[number] == 1}
    return {path: single.get(stem, stem) for path, stem in stems.items()}


def annotated_ids(paths: Sequence[str], images: Sequence[tuple[str, int]], where: str) -> dict[str, int | str]:
    """The number of each image in an annotation file.

    An image belongs to the entry whose file name, folders included, its path ends with. Where there is none, it belongs
    to the one entry of its stem that is left, of several to the one that has most folders in common with it.

    Args:
        paths: the images.
        images: (file name, number) of each entry.
        where: the file, for errors.

    Raises:
        UserError: an image has no entry, may have several, or has the one that another image has.
    """
    entries = [_parts(name) for name, _ in images]
    by_parts, by_stem = defaultdict(list), defaultdict(list)
    for place, parts in enumerate(entries):
        by_parts[parts].append(place)
        by_stem[Path(parts[-1]).stem].append(place)
    owners: dict[int, str] = {}

    def take(path: str, places: Sequence[int]) -> None:
        others = places[1:] if len(places) > 1 else [place for place in places if place in owners]
        if others:
            first = owners.get(others[0])
            what = shown_path(first) if first else f"entries {images[places[0]][1]} and {images[others[0]][1]}"
            raise UserError(
                f"{where}: {shown(images[places[0]][0])} may be the image {shown_path(path)}, but also {what}; its "
                "names are not unique, so write the images' folders into each file_name"
            )
        owners[places[0]] = path

    left = []
    for path in paths:
        parts = _parts(os.path.abspath(path))
        suffixes = (parts[start:] for start in range(len(parts)))  # the longest first
        places = next((by_parts[suffix] for suffix in suffixes if suffix in by_parts), [])
        if places:
            take(path, places)
        else:
            left.append((path, parts))
    known = set(owners)
    for path, parts in left:
        places = [place for place in by_stem[Path(parts[-1]).stem] if place not in known]
        if not places:
            raise UserError(
                f"image {shown_path(path)} is not in the annotation file {where}; give the one that describes these "
                "images"
            )
        shared = [_shared_folders(parts, entries[place]) for place in places]
        take(path, [place for place, number in zip(places, shared) if number == max(shared)])
    return {path: images[place][1] for place, path in owners.items()}


def _parts(name: str) -> tuple[str, ...]:
    """Folders and file of a path, also of one that was written on Windows, or on a Mac with accents apart."""
    name = unicodedata.normalize("NFC", name if "/" in name else name.replace("\\", "/"))
    return tuple(part for part in name.split("/") if part not in ("", ".", "..")) or ("",)


def _shared_folders(first: Sequence[str], second: Sequence[str]) -> int:
    """How many folders right before the file two paths share."""
    pairs = zip(reversed(first[:-1]), reversed(second[:-1]))
    return next((number for number, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)) - 1)
