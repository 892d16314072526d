"""The tables of docs/inheriting.md: what each architecture can inherit from each of its family."""

from __future__ import annotations

import pytest

from benchmarks.inheriting import PAGE, SCRATCH, cell, families, family_table, inheritance

PATHS = {path.stem: path for paths in families().values() for path in paths}


def documented() -> dict[str, list[str]]:
    """The lines below each family's heading."""
    sections: dict[str, list[str]] = {}
    for line in PAGE.read_text().splitlines():
        if line.startswith("### "):
            sections[line[4:]] = []
        elif sections and line and not line.startswith("<!--"):
            list(sections.values())[-1].append(line)
    return sections


def documented_cell(student: str, teacher: str) -> str:
    for lines in documented().values():
        header = [name.strip() for name in lines[0].strip("|").split("|")]
        for line in lines[2:]:
            row = [text.strip() for text in line.strip("|").split("|")]
            if row[0] == teacher and student in header:
                return row[header.index(student)]
    raise AssertionError(f"no cell for {student} under {teacher}")


@pytest.mark.parametrize(
    "student, teacher",
    [
        ("yolov5p", "yolov5n"),
        ("yolov5n", "yolov5p"),
        ("yolov5p", "yolov5m"),
        ("yolov5n", "yolov5n6"),
        ("yolov8p", "yolov8n"),
        ("yolov7-quarter", "yolov7-half"),
        ("yolov7-tiny", "yolov7"),
        ("mobilenetv2-yolov5s", "mobilenetv2-yolov5s"),
    ],
)
def test_pairs_are_as_the_page_says(student: str, teacher: str) -> None:
    found = cell(inheritance(PATHS[student], PATHS[teacher]))
    assert found == documented_cell(student, teacher)
    assert (found == SCRATCH) == ((student, teacher) in {("yolov5n", "yolov5n6"), ("yolov7-tiny", "yolov7")})


def test_every_architecture_is_on_the_page() -> None:
    for family, paths in families().items():
        header = [name.strip() for name in documented()[family][0].strip("|").split("|")]
        assert sorted(header) == sorted(["teacher", *(path.stem for path in paths)])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("family", list(families()))
def test_the_page_is_what_the_benchmark_prints(family: str) -> None:
    assert documented()[family] == [line for line in family_table(families()[family]) if line]
