"""Names for what is written about sources: the stem where that will do, and never the same twice."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from utils.output_names import MAX_BYTES, OutputNames, file_name


def names(*paths: str) -> list[str]:
    found = OutputNames(paths, lambda path: path.endswith((".mp4", ".avi")))
    return [found[path] for path in paths]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["/d/a.png", "/d/b.jpg", "/e/c.d.png"], ["a", "b", "c.d"]),
        (["/d/val/a/0.png", "/d/val/b/0.png", "/d/val/b/1.png"], ["a_0", "b_0", "1"]),
        (["/x/val/0.png", "/y/val/0.png"], ["x_val_0", "y_val_0"]),
        (["/d/x.jpg", "/d/x.png"], ["x_jpg", "x_png"]),
        (["/d/a/x.jpg", "/d/a/x.png", "/d/b/x.png"], ["a_x_jpg", "a_x_png", "b_x"]),
        (["/d/0.png", "/d/sub/0.png"], ["0", "sub_0"]),
        (["/d/clip.mp4", "/d/clip_1.png"], ["clip_mp4", "clip_1"]),
        (["/d/clip.mp4", "/d/clip_01.png", "/d/clip_a.png"], ["clip", "clip_01", "clip_a"]),
        (["/d/7.png", "/d/007.png"], ["7", "007"]),
        (["0", "rtsp://u:p@host:554/live?x=1"], ["0", "host_554_live_x_1"]),
        (["rtsp://u:p@host/1", "rtsp://v:q@host/1"], ["host_1", "host_1_2"]),
        (["/d/x.png", "/d/../d/x.png"], ["x", "x"]),
    ],
)
def test_names(paths: list[str], expected: list[str]) -> None:
    assert names(*paths) == expected


def test_no_order_gives_two_files_one_name() -> None:
    below = ("a/x.png", "b/x.png", "a_x.png", "a/x.jpg", "a_b/x.png", "a/b/x.png", "x_1.png", "x.mp4")
    paths = [f"/d/{path}" for path in below]
    usual = dict(zip(paths, names(*paths)))
    assert len(set(usual.values())) == len(paths)
    assert usual["/d/a_x.png"] == "a_x" and usual["/d/x_1.png"] == "x_1"
    for order in itertools.islice(itertools.permutations(paths), 0, 40000, 997):
        assert len(set(names(*order))) == len(paths)


def test_files_that_come_later_get_names_of_their_own() -> None:
    found = OutputNames(["/d/x.mp4"], lambda path: path.endswith(".mp4"))
    later = [found[path] for path in ("/d/x.png", "/e/x.png", "/d/x_3.png", "/d/x.mp4")]
    assert later[3] == "x" and len(set(later)) == 4
    assert not any(name.removeprefix("x_").isdecimal() for name in later), "x_3 is the file of the video's third frame"


def test_a_long_name_is_cut_and_stays_apart_from_others() -> None:
    long = ["字" * 90 + end for end in "ab"]
    first, second = (file_name(name, ".jpg") for name in long)
    assert first != second and len(os.fsencode(first)) <= MAX_BYTES and first.endswith(".jpg")
    assert file_name("x" * 251, ".jpg") == "x" * 251 + ".jpg"
    assert Path(file_name("a\udcff", ".txt")).suffix == ".txt"


def test_names_that_the_file_system_takes_for_one_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = ("/d/a/\u00e9.png", "/d/b/e\u0301.png", "/d/a/x.png", "/d/b/X.png")
    assert names(*paths) == ["\u00e9", "e\u0301", "x", "X"]
    monkeypatch.setattr("utils.output_names.sys.platform", "darwin")
    assert names(*paths) == ["a_\u00e9", "b_e\u0301", "a_x", "b_X"]
