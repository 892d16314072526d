"""Writing annotations of any format as a data set in YOLO's: images/<split>, labels/<split>, data.yaml."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from data.config import MAX_NAME, SPLITS, write_data_yaml
from data.decoding.images import IMAGE_SUFFIXES, check_image
from utils.errors import UsageError, UserError
from utils.logging import progress
from utils.text import MAX_PATH_SHOWN, printable, shown, shown_path

LARGEST = 1e9  # of a coordinate in pixels
MAX_KINDS = 50  # lines of a report
MOST_REASONS = 3  # of them in an error


@dataclass(frozen=True, eq=False)
class Annotation:
    """One object.

    Attributes:
        class_name: one of the data set's names, or one that is to be left out.
        box_xyxy: corners in pixels; the image spans 0 ... width and 0 ... height.
        polygon: outline (k, 2) in pixels, or None; where given it is written in place of the box.
    """

    class_name: str
    box_xyxy: tuple[float, float, float, float]
    polygon: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class AnnotatedImage:
    """One image of one split.

    Attributes:
        source: the file.
        name: its path below images/<split>, with forward slashes.
        split: one of SPLITS.
        annotations: its objects.
        size: width and height that they were drawn on, in pixels; None where that is not said.
    """

    source: Path
    name: str
    split: str
    annotations: tuple[Annotation, ...]
    size: tuple[int, int] | None = None


def numbers(values: Any, count: int) -> list[float] | None:
    """A list of `count` finite numbers, or None where it is something else."""
    if not isinstance(values, list) or len(values) != count:
        return None
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return None
    found = [float(value) if abs(value) <= LARGEST else math.inf for value in values]  # nan is no more than that
    return found if all(map(math.isfinite, found)) else None


def stated_size(width: Any, height: Any) -> tuple[int, int] | None:
    """Width and height as an annotation states them, as numbers or text; None where it does not."""
    try:
        sides = [float(side) for side in (width, height)]
    except (TypeError, ValueError, OverflowError):
        return None
    return (int(sides[0]), int(sides[1])) if all(1 <= side <= LARGEST for side in sides) else None


def class_name(text: str) -> str:
    """A class name with single blanks and no control characters; "" for one that is empty or too long."""
    name = " ".join(printable(" ".join(text.split())).split())
    return name if len(name) <= MAX_NAME else ""


@dataclass
class Report:
    """Counts of what was written and of what was not, each with the first place where it was met."""

    written: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def leave_out(self, kind: str, where: str) -> None:
        """Counts something that is not written."""
        self.left_out[kind] += 1
        self.first.setdefault(kind, printable(where, MAX_PATH_SHOWN))

    def main_reasons(self) -> str:
        """What was written, and what was left out most often, for one line."""
        reasons = [f"{count} {what}" for what, count in self.written.items()]
        most = self.left_out.most_common(MOST_REASONS)
        reasons += [f"{count} {kind}, first: {self.first[kind]}" for kind, count in most]
        more = len(self.left_out) - len(most)
        return "; ".join([*reasons, *([f"{more} more kinds"] if more else [])])

    def text(self) -> str:
        """What a user is told."""
        lines = [f"{count:8d} {what}" for what, count in self.written.items()]
        lines += [f"{count:8d} {kind}, first: {self.first[kind]}" for kind, count in self.left_out.most_common()]
        return "\n".join(lines)


def assign_splits(names: Sequence[str], ratios: Sequence[float], seed: int) -> dict[str, str]:
    """Deals names to train, val and test in the given ratios; the same for a seed on every machine.

    Raises:
        UsageError: the ratios are not two or three numbers >= 0 of which the first is positive.
    """
    if len(ratios) not in (2, 3) or not all(0 <= ratio < math.inf for ratio in ratios) or ratios[0] <= 0:
        raise UsageError(f"--split-ratios {list(ratios)}: expected shares for train, val and test, such as 0.8 0.2 0")
    order = sorted(names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode("utf-8", "surrogatepass")).digest())
    ends = np.round(np.cumsum(ratios) / sum(ratios) * len(order)).astype(int)
    places = np.searchsorted(ends, np.arange(len(order)), side="right")
    return {name: SPLITS[place] for name, place in zip(order, places)}


def write_dataset(
    images: Sequence[AnnotatedImage], names: Sequence[str], out: Path, report: Report, *, copy: bool = False
) -> Path:
    """Writes images (as links where possible), label files and data.yaml.

    A box is clipped to its image; what has no area then is left out, as are repeated rows and classes not in `names`.

    Args:
        images: what is to be written.
        names: class names in the order of their numbers.
        out: a new or empty folder.
        report: is added to.
        copy: copy the images rather than link to them.

    Returns:
        Path of the data yaml.

    Raises:
        UserError: the folder holds files already; no image can be used; there is no image for train or none for val.
    """
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out {shown_path(out)} is not empty; name a new folder or remove it first")
    class_ids = {name: i for i, name in enumerate(names)}
    taken: dict[tuple[str, PurePosixPath], str] = {}
    for image in progress(images, total=len(images), desc="writing", enabled=len(images) > 500):
        relative = PurePosixPath(image.name)
        if relative.is_absolute() or ".." in relative.parts or not relative.name:
            report.leave_out("images whose name leads out of the folder", image.name)
            continue
        if relative.suffix.lower() not in IMAGE_SUFFIXES:
            report.leave_out("images whose suffix training does not read", image.name)
            continue
        check = check_image(str(image.source)) if os.path.isfile(image.source) else None
        if check is None or not check.width:
            reason = f" ({check.detail})" if check else ""
            report.leave_out("images that are missing or cannot be read", f"{image.source}{reason}")
            continue
        free = _free_name(image, relative, taken, out)
        if free is None:
            report.leave_out("images that are listed twice in a split", image.name)
            continue
        if free != relative:
            report.leave_out("images renamed, as another has their name in the split", f"{image.source} is {free}")
        taken[image.split, free.with_suffix("")] = os.path.realpath(image.source)
        if image.size not in (None, (check.width, check.height)):
            kind = "images of another size than their annotations say (their boxes may be wrong)"
            report.leave_out(kind, f"{image.source}: {check.width} x {check.height}, not {image.size}")
        rows = _label_rows(image, (check.width, check.height), class_ids, report)
        _place(image.source, out / "images" / image.split / free, copy)
        label_file = (out / "labels" / image.split / free).with_suffix(".txt")
        label_file.parent.mkdir(parents=True, exist_ok=True)
        label_file.write_text("".join(f"{row}\n" for row in rows))
        report.written[f"images in {image.split}"] += 1
        report.written[f"objects in {image.split}"] += len(rows)
    splits = [split for split in SPLITS if any(split == name for name, _ in taken)]
    for split in ("train", "val"):
        if split not in splits:
            reasons = report.main_reasons() or "none listed"
            raise UserError(f"no usable image for the {split} split among {len(images)} ({reasons})")
    return write_data_yaml(out, splits, names)


def _free_name(
    image: AnnotatedImage, wanted: PurePosixPath, taken: Mapping[tuple[str, PurePosixPath], str], out: Path
) -> PurePosixPath | None:
    """The name, with a number behind it where another image has it or its label file; None for the same image again."""
    for number in itertools.count(1):
        name = wanted if number == 1 else wanted.with_name(f"{wanted.stem}_{number}{wanted.suffix}")
        holder = taken.get((image.split, name.with_suffix("")))
        if holder == os.path.realpath(image.source):
            return None
        # The second question is for file systems that take a.jpg and A.jpg for one.
        if holder is None and not os.path.lexists(out / "images" / image.split / name):
            return name
    raise AssertionError("an endless count has ended")


def _label_rows(image: AnnotatedImage, size: tuple[int, int], class_ids: dict[str, int], report: Report) -> list[str]:
    rows: dict[str, None] = {}
    scale = np.array(size, np.float64)
    for annotation in image.annotations:
        if annotation.class_name not in class_ids:
            kind = f"objects of class {shown(annotation.class_name)}, which is not in --names"
            kind = kind if len(report.left_out) < MAX_KINDS else "objects of other classes that are not in --names"
            report.leave_out(kind, image.name)
            continue
        points = np.array(annotation.box_xyxy, np.float64).reshape(2, 2)
        if not (points[1] > points[0]).all():
            report.leave_out("boxes of zero or negative size", f"{image.name}: {_box_text(annotation)}")
            continue
        corners = np.clip(points / scale, 0, 1)
        if not (corners[1] - corners[0] > 1e-6).all():
            report.leave_out("boxes outside their image", f"{image.name}: {_box_text(annotation)}")
            continue
        outline = None if annotation.polygon is None else np.clip(annotation.polygon / scale, 0, 1)
        if outline is not None and (np.ptp(outline, axis=0) > 1e-6).all():
            values = outline.ravel()
        else:
            values = np.concatenate([corners.mean(axis=0), corners[1] - corners[0]])
        row = " ".join([str(class_ids[annotation.class_name]), *(f"{value:.6f}" for value in values)])
        if row in rows:
            report.leave_out("objects listed twice", f"{image.name}: {_box_text(annotation)}")
        rows[row] = None
    return list(rows)


def _box_text(annotation: Annotation) -> str:
    return " ".join(f"{value:g}" for value in annotation.box_xyxy)


def _place(source: Path, target: Path, copy: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not copy:
        try:
            os.symlink(source.absolute(), target)
            return
        except OSError:  # a file system or an account without links
            pass
    shutil.copyfile(source, target)
