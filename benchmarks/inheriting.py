"""What every architecture of cfg/ can inherit from every other of its family, without weights: on the meta device.

python -m benchmarks.inheriting                     prints the tables
python -m benchmarks.inheriting --write             puts them into docs/inheriting.md
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import torch

from models.yolo import Model
from pruning import Inheritance, PruneError, plan_inheritance

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "inheriting.md"
MARKS = "<!-- made by benchmarks/inheriting.py -->", "<!-- end -->"
SCRATCH = "-"


@lru_cache
def on_meta(path: Path) -> Model:
    """An architecture without weights."""
    with torch.device("meta"):
        return Model(path)


def families() -> dict[str, list[Path]]:
    """The architectures of each folder of cfg/."""
    folders = sorted(path for path in (ROOT / "cfg").iterdir() if path.is_dir())
    return {folder.name: sorted(folder.glob("*.yaml")) for folder in folders}


def parameters(path: Path) -> int:
    """How many parameters an architecture has."""
    return sum(parameter.numel() for parameter in on_meta(path).parameters())


def inheritance(student: Path, teacher: Path) -> Inheritance | str:
    """What a pair gives; the reason where it gives nothing."""
    try:
        return plan_inheritance(on_meta(student), on_meta(teacher))
    except PruneError as error:
        return str(error)


def cell(found: Inheritance | str) -> str:
    """A pair in a table: the share of the student's parameters, and inner blocks that are left out or fresh."""
    if isinstance(found, str):
        return SCRATCH
    share = "all" if found.inherited == found.numbers else f"{min(found.share, 0.999):.0%}".replace("%", " %")
    fewer = sum(max(one.teacher - one.student, 0) for one in found.blocks)
    more = sum(max(one.student - one.teacher, 0) for one in found.blocks)
    return ", ".join([share] + [f"-{fewer}"] * bool(fewer) + [f"+{more}"] * bool(more))


def family_table(paths: Sequence[Path]) -> Iterator[str]:
    """The lines of a family's table, and why pairs have none: a row a teacher, large ones first, a column a student."""
    paths = sorted(paths, key=parameters)
    names = [path.stem for path in paths]
    yield f"| teacher | {' | '.join(names)} |"
    yield "|---" * (len(names) + 1) + "|"
    reasons: dict[str, list[str]] = {}
    for teacher in reversed(paths):
        found = [inheritance(student, teacher) for student in paths]
        yield f"| {teacher.stem} | {' | '.join(map(cell, found))} |"
        for student, one in zip(paths, found):
            if isinstance(one, str):
                reasons.setdefault(one.partition(" (which have")[0], []).append(f"{student.stem} under {teacher.stem}")
    if reasons:
        yield ""
    for reason, pairs in reasons.items():
        more = f", and {len(pairs) - 3} more" if len(pairs) > 3 else ""
        yield f"- {reason}: {', '.join(pairs[:3])}{more}"


def tables() -> Iterator[str]:
    """The tables of all families."""
    for family, paths in families().items():
        yield f"\n### {family}\n"
        yield from family_table(paths)


def main() -> None:
    """Prints the tables or writes them into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"replace the tables of {PAGE.relative_to(ROOT)}")
    write = parser.parse_args().write
    text = "\n".join(tables()).strip()
    if not write:
        print(text)
        return
    before, _, rest = PAGE.read_text().partition(MARKS[0])
    PAGE.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{rest.partition(MARKS[1])[2]}")


if __name__ == "__main__":
    main()
