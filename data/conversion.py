"""Writing annotations of any format as a data set in YOLO's: images/<split>, labels/<split>, data.yaml."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from data.config import SPLITS, write_data_yaml
from data.images import check_image
from utils.errors import UsageError, UserError
from utils.logging import progress


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
    """One image of one split. `name` is its path below images/<split>, with forward slashes."""

    source: Path
    name: str
    split: str
    annotations: tuple[Annotation, ...]


@dataclass
class Report:
    """Counts of what was written and of what was not, each with the first place where it was met."""

    written: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def leave_out(self, kind: str, where: str) -> None:
        """Counts something that is not written."""
        self.left_out[kind] += 1
        self.first.setdefault(kind, where)

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
    if len(ratios) not in (2, 3) or min(ratios) < 0 or ratios[0] <= 0:
        raise UsageError(f"--split-ratios {list(ratios)}: expected shares for train, val and test, such as 0.8 0.2 0")
    order = sorted(names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
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
    if out.exists() and any(out.iterdir()):
        raise UserError(f"--out {str(out)!r} is not empty; name a new folder or remove it first")
    class_ids = {name: i for i, name in enumerate(names)}
    taken: set[tuple[str, PurePosixPath]] = set()
    for image in progress(images, total=len(images), desc="writing", enabled=len(images) > 500):
        relative = PurePosixPath(image.name)
        key = (image.split, relative.with_suffix(""))
        if relative.is_absolute() or ".." in relative.parts:
            report.leave_out("images whose name leads out of the folder", image.name)
            continue
        if key in taken:
            report.leave_out("images of a name that another has in the split", image.name)
            continue
        check = check_image(str(image.source)) if image.source.is_file() else None
        if check is None or not check.width:
            reason = f" ({check.detail})" if check else ""
            report.leave_out("images that are missing or cannot be read", f"{image.source}{reason}")
            continue
        taken.add(key)
        rows = _label_rows(image, (check.width, check.height), class_ids, report)
        _place(image.source, out / "images" / image.split / relative, copy)
        label_file = (out / "labels" / image.split / relative).with_suffix(".txt")
        label_file.parent.mkdir(parents=True, exist_ok=True)
        label_file.write_text("".join(f"{row}\n" for row in rows))
        report.written[f"images in {image.split}"] += 1
        report.written[f"objects in {image.split}"] += len(rows)
    splits = [split for split in SPLITS if any(split == name for name, _ in taken)]
    for split in ("train", "val"):
        if split not in splits:
            reasons = "; ".join(line.strip() for line in report.text().splitlines())
            raise UserError(f"no usable image for the {split} split among {len(images)} ({reasons or 'none listed'})")
    return write_data_yaml(out, splits, names)


def _label_rows(image: AnnotatedImage, size: tuple[int, int], class_ids: dict[str, int], report: Report) -> list[str]:
    rows: dict[str, None] = {}
    scale = np.array(size, np.float64)
    for annotation in image.annotations:
        if annotation.class_name not in class_ids:
            report.leave_out(f"objects of class {annotation.class_name!r}, which is not in --names", image.name)
            continue
        points = np.array(annotation.box_xyxy, np.float64).reshape(2, 2)
        if not (points[1] > points[0]).all():
            report.leave_out("boxes of zero or negative size", f"{image.name}: {annotation.box_xyxy}")
            continue
        corners = np.clip(points / scale, 0, 1)
        if not (corners[1] - corners[0] > 1e-6).all():
            report.leave_out("boxes outside their image", f"{image.name}: {annotation.box_xyxy}")
            continue
        if annotation.polygon is not None:
            values = np.clip(annotation.polygon / scale, 0, 1).ravel()
        else:
            values = np.concatenate([corners.mean(axis=0), corners[1] - corners[0]])
        row = " ".join([str(class_ids[annotation.class_name]), *(f"{value:.6f}" for value in values)])
        if row in rows:
            report.leave_out("objects listed twice", f"{image.name}: {annotation.box_xyxy}")
        rows[row] = None
    return list(rows)


def _place(source: Path, target: Path, copy: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not copy:
        try:
            os.symlink(source.absolute(), target)
            return
        except OSError:  # a file system or an account without links
            pass
    shutil.copyfile(source, target)
