"""What a data set is once its files have been checked: one record an image, and the list of what was wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from utils.text import printable

MAX_PATH = 1000  # characters of a path in a message


@dataclass(frozen=True, slots=True, eq=False)
class ImageRecord:
    """One usable image with its labels.

    Attributes:
        path: the image file.
        width: pixels, as the image is decoded (after the EXIF rotation).
        height: pixels, likewise.
        labels: float32 (n, 5) rows [class, cx, cy, w, h], normalised to the image; (0, 5) for a background.
        segments: one normalised polygon, float32 (k, 2), for each row of `labels`, or () when the file holds boxes
            alone. A plain box among polygons is its own four corners.
    """

    path: str
    width: int
    height: int
    labels: np.ndarray
    segments: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong in one file.

    Attributes:
        path: the file that is to be mended.
        line: line number in a label file, from 1, or None for a whole file.
        kind: what sort of problem, one of the names in data.decoding.images and data.label_rows.
        detail: what was found, and what was done about it.
    """

    path: str
    line: int | None
    kind: str
    detail: str

    @property
    def where(self) -> str:
        """path:line, or the path of a whole file."""
        path = printable(self.path, MAX_PATH)
        return path if self.line is None else f"{path}:{self.line}"

    def __str__(self) -> str:
        return f"{self.where}: {self.kind}: {printable(self.detail)}"


@dataclass(frozen=True)
class DatasetIndex:
    """The images of one split that can be trained on.

    Attributes:
        records: the usable images, sorted by path.
        problems: everything that was found wrong.
        counts: numbers under the keys images (usable), dropped (found or listed, but not usable), boxes, labelled
            (images with at least one box), empty (images whose label file holds no box), missing (images without a
            label file).
        content_hash: SHA-256 of names, image sizes and labels. It does not depend on where the data set lies.
    """

    records: list[ImageRecord]
    problems: list[Problem]
    counts: dict[str, int]
    content_hash: str

    def __len__(self) -> int:
        return len(self.records)

    def problem_counts(self) -> dict[str, int]:
        """Number of problems of each kind, most frequent first."""
        return dict(Counter(problem.kind for problem in self.problems).most_common())

    def class_counts(self, nc: int) -> np.ndarray:
        """Number of boxes of each class, int64 (nc,)."""
        if not self.records:
            return np.zeros(nc, np.int64)
        classes = np.concatenate([record.labels[:, 0] for record in self.records])
        return np.bincount(classes.astype(np.int64), minlength=nc)

    def summary(self) -> str:
        """One line on the images, and one line with an example for each kind of problem."""
        c = self.counts
        lines = [
            f"{c['images']} images, {c['boxes']} boxes, {c['empty'] + c['missing']} backgrounds, {c['dropped']} dropped"
        ]
        for kind, count in self.problem_counts().items():
            example = next(problem for problem in self.problems if problem.kind == kind)
            lines.append(f"  {kind}: {count}, such as {example.where}: {printable(example.detail)}")
        return "\n".join(lines)
