"""Looks through a data set and prints what a trainer should know before training on it.

python -m data.audit --data data/mine.yaml
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data.config import SPLITS, DatasetConfig, load_dataset_config
from data.label_rows import label_path
from data.labels import build_index
from data.records import DatasetIndex, Problem
from data.synthetic import ensure_dataset
from utils.errors import UserError
from utils.logging import LOGGER, setup_logging
from utils.paths import file_hash
from utils.running.cli import CommandParser, check_range, run_command
from utils.text import printable, shown_path

LEAK = "same image in two splits"
REPEATED = "same image twice in a split"
BEYOND_EDGE = "box beyond the edge"

# Upper edges in pixels of the square root of a box's area; 32 and 96 part COCO's small, medium and large.
SIZE_EDGES = (8, 16, 32, 64, 96, 128, 256, 512)
BAR_WIDTH = 30


def find_repeated_images(indices: Mapping[str, DatasetIndex]) -> list[Problem]:
    """Images with the very same bytes, within a split or in two: what is learnt by heart is then taken for skill.

    Only files of equal length are read.

    Args:
        indices: split name -> index.
    """
    by_size: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for split, index in indices.items():
        for record in index.records:
            with contextlib.suppress(OSError):  # gone by now
                by_size[os.path.getsize(record.path)].append((split, record.path))
    problems = []
    for group in by_size.values():
        if len(group) == 1:
            continue
        first: dict[str, tuple[str, str]] = {}
        for split, path in group:
            try:
                first_split, first_path = first.setdefault(file_hash(path), (split, path))
            except OSError:
                continue
            if (first_split, first_path) != (split, path):
                kind = REPEATED if first_split == split else LEAK
                problems.append(
                    Problem(path, None, kind, f"in {split}; the same as {printable(first_path)} in {first_split}")
                )
    return problems


def find_boxes_beyond_edge(index: DatasetIndex, tolerance: float = 0.01) -> list[Problem]:
    """Boxes whose edges lie more than `tolerance` (share of the side) outside their image.

    Upstream's rules accept them, as centre and size are within 0 ... 1; training clips them, evaluation does not.
    """
    problems = []
    for record in index.records:
        centres, halves = record.labels[:, 1:3], record.labels[:, 3:5] / 2
        overshoot = np.maximum(halves - centres, centres + halves - 1).max(axis=1)
        for label, reach in zip(record.labels, overshoot):
            if reach > tolerance:
                detail = f"a box of class {label[0]:.0f} reaches {reach:.0%} of the side outside"
                problems.append(Problem(label_path(record.path), None, BEYOND_EDGE, detail))
    return problems


def report(config: DatasetConfig, indices: Mapping[str, DatasetIndex], limit: int = 20) -> str:
    """The whole report as text.

    Args:
        config: the data set.
        indices: split name -> index.
        limit: how many problems of each kind are listed.
    """
    problems = [problem for index in indices.values() for problem in index.problems]
    problems += [problem for index in indices.values() for problem in find_boxes_beyond_edge(index)]
    problems += find_repeated_images(indices)
    parts = [
        _split_table(indices),
        _class_table(config.names, indices),
        _size_histogram(indices),
        _problem_list(problems, limit),
    ]
    return "\n\n".join(parts)


def _split_table(indices: Mapping[str, DatasetIndex]) -> str:
    keys = ("images", "boxes", "labelled", "empty", "missing", "dropped")
    lines = [f"{'split':<10}" + "".join(f"{key:>10}" for key in keys)]
    lines += [f"{split:<10}" + "".join(f"{index.counts[key]:>10}" for key in keys) for split, index in indices.items()]
    lines.append("(labelled, empty and missing: images with boxes, without one, without a label file)")
    return "\n".join(lines)


def _class_table(names: Sequence[str], indices: Mapping[str, DatasetIndex]) -> str:
    counts = {split: index.class_counts(len(names)) for split, index in indices.items()}
    width = max(len("boxes of class"), *(len(name) + 5 for name in names)) + 2
    lines = [f"{'boxes of class':<{width}}" + "".join(f"{split:>10}" for split in counts)]
    for i, name in enumerate(names):
        numbers = [int(of_class[i]) for of_class in counts.values()]
        remark = "" if all(numbers) else "   none in " + ", ".join(s for s, n in zip(counts, numbers) if not n)
        lines.append(f"{i:>4} {name:<{width - 5}}" + "".join(f"{number:>10}" for number in numbers) + remark)
    return "\n".join(lines)


def _size_histogram(indices: Mapping[str, DatasetIndex]) -> str:
    records = [record for index in indices.values() for record in index.records]
    sides = [
        np.sqrt(record.labels[:, 3] * record.width * record.labels[:, 4] * record.height)
        for record in records
        if len(record.labels)
    ]
    bins = np.digitize(np.concatenate([np.zeros(0), *sides]), SIZE_EDGES)
    counts = np.bincount(bins, minlength=len(SIZE_EDGES) + 1).tolist()
    lines = ["boxes by size, the square root of the area in pixels of the stored image"]
    for i, count in enumerate(counts):
        low = SIZE_EDGES[i - 1] if i else 0
        label = f"{low:>4} - {SIZE_EDGES[i]:<4}" if i < len(SIZE_EDGES) else f"{low:>4} -     "
        lines.append(f"{label} {count:>9} {'#' * round(BAR_WIDTH * count / max(max(counts), 1))}")
    return "\n".join(lines)


def _problem_list(problems: Sequence[Problem], limit: int) -> str:
    if not problems:
        return "no problems found"
    lines = [f"{len(problems)} problems"]
    for kind, count in Counter(problem.kind for problem in problems).most_common():
        lines.append(f"{count:>7} {kind}")
        of_kind = [problem for problem in problems if problem.kind == kind]
        lines += [f"          {problem.where}: {printable(problem.detail)}" for problem in of_kind[:limit]]
        if count > limit:
            lines.append(f"          ... and {count - limit} more (--limit lists them)")
    return "\n".join(lines)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = CommandParser("data.audit", description="What is wrong with a data set, and what is in it")
    parser.add_argument("--data", type=Path, required=True, help="data yaml")
    parser.add_argument("--limit", type=int, default=20, help="problems of a kind that are listed")
    parser.add_argument("--no-cache", action="store_true", help="check every file again, keep nothing")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    args = parse_args(argv)
    check_range("--limit", args.limit, 0)
    setup_logging()
    config = ensure_dataset(load_dataset_config(args.data, needs=()))
    given = {split: getattr(config, split) for split in SPLITS if getattr(config, split)}
    missing = [path for paths in given.values() for path in paths if not os.path.exists(path)]
    for path in missing:
        LOGGER.warning(f"images {shown_path(path)} do not exist; correct the path in the data yaml")
    there = {split: [path for path in paths if path not in missing] for split, paths in given.items()}
    indices = {
        split: build_index(paths, config.nc, cache=not args.no_cache, prefix=split, quiet=True)
        for split, paths in there.items()
        if paths
    }
    if not indices:
        raise UserError(f"data file {shown_path(args.data)}: none of its images exist; correct `path:` there")
    LOGGER.info(report(config, indices, args.limit))


if __name__ == "__main__":
    run_command(main)
