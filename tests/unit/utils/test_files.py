"""The writers of JSON and of pictures, and tables in Markdown."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from utils.errors import UserError
from utils.files import write_image, write_json
from utils.text import markdown_table


def test_json_has_only_what_json_knows(tmp_path: Path) -> None:
    path = tmp_path / "é.json"
    value = {"ap": float("nan"), "rows": [(1, float("inf")), {"at": tmp_path}], "name": "dög", "none": None}
    write_json(path, value)
    assert json.loads(path.read_text()) == {
        "ap": None, "rows": [[1, None], {"at": str(tmp_path)}], "name": "dög", "none": None,
    }  # fmt: skip
    assert path.read_text().endswith("}\n") and len(path.read_text().splitlines()) > 5
    write_json(path, [1, 2], indent=None)
    assert path.read_text() == "[1, 2]\n"


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, 1)
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert path.read_text() == "1\n" and [one.name for one in tmp_path.iterdir()] == ["a.json"]


def test_pictures(tmp_path: Path) -> None:
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    path = tmp_path / "bild é.png"
    write_image(path, image, (cv2.IMWRITE_PNG_COMPRESSION, 1))
    assert np.array_equal(cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR), image)
    with pytest.raises(UserError, match=r"cannot write the picture .*\.webp"):
        write_image(tmp_path / "wide.webp", np.zeros((1, 20000, 3), np.uint8))
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_a_table_in_markdown() -> None:
    assert markdown_table(("a", "b"), [(1, "x")]) == ["| a | b |", "| --- | --- |", "| 1 | x |"]
