"""data.convert: VOC and COCO annotations written in YOLO's format."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from data.config import load_dataset_config
from data.convert import main as convert
from data.converters.coco import split_of
from data.converters.writing import assign_splits
from data.labels import build_index
from tests.golden import shared_path
from utils.errors import UsageError
from utils.running.cli import run_command


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def main(words: list[str]) -> int:
    """Runs the command; returns its exit code."""
    with pytest.raises(SystemExit) as ending:
        run_command(lambda: convert(words))
    assert isinstance(ending.value.code, int)
    return ending.value.code


def write_image(path: Path, size: tuple[int, int] = (100, 50)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((size[1], size[0], 3), np.uint8))


def labels(out: Path, name: str) -> list[list[float]]:
    return [[float(value) for value in line.split()] for line in (out / "labels" / name).read_text().splitlines()]


def voc_object(name: str, box: tuple[int, int, int, int], difficult: int = 0) -> str:
    corners = "".join(f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{corners}</bndbox></object>"


def voc_image(root: Path, stem: str, *objects: str) -> None:
    write_image(root / f"JPEGImages/{stem}.jpg")
    (root / "Annotations").mkdir(exist_ok=True)
    (root / f"Annotations/{stem}.xml").write_text(f"<annotation>{''.join(objects)}</annotation>")


def voc_list(root: Path, name: str, *stems: str) -> None:
    (root / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
    (root / f"ImageSets/Main/{name}.txt").write_text("".join(f"{stem}  1\n" for stem in stems))


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "voc"
    voc_image(root, "a", voc_object("dog", (11, 6, 30, 25)), voc_object("cat", (1, 1, 100, 50), difficult=1))
    voc_image(root, "b", voc_object("cat", (1, 1, 50, 50)), voc_object("cat", (1, 1, 50, 50)))
    voc_list(root, "train", "a")
    voc_list(root, "val", "b")
    return root


class TestVoc:
    def run(self, voc: Path, *flags: str) -> tuple[int, Path]:
        out = voc.parent / "out"
        return main(["voc", "--source", str(voc), "--out", str(out), *flags]), out

    def test_pixels_count_from_one_and_include_both_corners(self, voc: Path) -> None:
        code, out = self.run(voc)
        assert code == 0
        # 11 ... 30 covers 10 to 30 of 100, 6 ... 25 covers 5 to 25 of 50: centre 0.2, 0.3 and size 0.2, 0.4
        assert labels(out, "train/a.txt") == [[1, 0.2, 0.3, 0.2, 0.4]]
        assert labels(out, "val/b.txt") == [[0, 0.25, 0.5, 0.5, 1]]

    def test_zero_based_corners(self, voc: Path) -> None:
        _, out = self.run(voc, "--pixel-origin", "0")
        # 11 to 30 of 100, 6 to 25 of 50
        assert labels(out, "train/a.txt") == [[1, 0.205, 0.31, 0.19, 0.38]]

    def test_the_yaml_is_read_back(self, voc: Path) -> None:
        _, out = self.run(voc)
        config = load_dataset_config(out / "data.yaml")
        assert config.names == ("cat", "dog") and config.test == ()
        assert build_index(config.train, config.nc).problems == []
        assert build_index(config.val, config.nc).counts["boxes"] == 1

    def test_difficult_objects(self, voc: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.run(voc)
        text = capsys.readouterr().out
        assert "1 difficult objects (--keep-difficult keeps them)" in text
        assert "1 objects listed twice" in text

    def test_keep_difficult(self, voc: Path) -> None:
        _, out = self.run(voc, "--keep-difficult")
        assert labels(out, "train/a.txt") == [[1, 0.2, 0.3, 0.2, 0.4], [0, 0.5, 0.5, 1, 1]]

    def test_names_choose_classes_and_their_order(self, voc: Path, capsys: pytest.CaptureFixture[str]) -> None:
        _, out = self.run(voc, "--names", "dog,bird")
        assert load_dataset_config(out / "data.yaml").names == ("dog", "bird")
        assert labels(out, "train/a.txt")[0][0] == 0
        assert labels(out, "val/b.txt") == []
        assert "2 objects of class 'cat', which is not in --names, first: b.jpg" in capsys.readouterr().out

    def test_lists_may_have_other_names(self, voc: Path) -> None:
        voc_list(voc, "trainval", "b")
        voc_list(voc, "test", "a")
        code, out = self.run(voc, "--splits", "train=trainval", "val=test")
        assert code == 0
        assert [path.name for path in (out / "images/train").iterdir()] == ["b.jpg"]

    def test_split_ratios(self, voc: Path) -> None:
        for i in range(8):
            voc_image(voc, f"c{i}", voc_object("cat", (1, 1, 50, 50)))
        _, out = self.run(voc, "--split-ratios", "0.5", "0.3", "0.2")
        assert [len(list((out / "images" / split).iterdir())) for split in ("train", "val", "test")] == [5, 3, 2]

    def test_images_are_links_or_copies(self, voc: Path) -> None:
        _, out = self.run(voc)
        assert (out / "images/train/a.jpg").is_symlink()
        assert cv2.imread(str(out / "images/train/a.jpg")) is not None

    def test_copy(self, voc: Path) -> None:
        _, out = self.run(voc, "--copy")
        assert not (out / "images/train/a.jpg").is_symlink()
        assert (out / "images/train/a.jpg").read_bytes() == (voc / "JPEGImages/a.jpg").read_bytes()

    def test_copies_where_links_cannot_be(self, voc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: Any) -> None:
            raise OSError("no links here")

        monkeypatch.setattr(os, "symlink", refuse)
        _, out = self.run(voc)
        assert (out / "images/train/a.jpg").is_file() and not (out / "images/train/a.jpg").is_symlink()

    def test_bad_items_are_left_out_and_counted(self, voc: Path, capsys: pytest.CaptureFixture[str]) -> None:
        voc_list(voc, "train", "a", "lost", "broken", "gone")
        (voc / "Annotations/broken.xml").write_text("<annotation><object>")
        voc_image(voc, "gone")
        (voc / "JPEGImages/gone.jpg").unlink()
        voc_image(
            voc,
            "a",
            voc_object("dog", (11, 6, 11, 25)),
            voc_object("dog", (90, 40, 130, 70)),
            voc_object("dog", (200, 1, 210, 20)),
            "<object><name>dog</name></object>",
        )
        code, out = self.run(voc)
        assert code == 0
        # 90 ... 130 is clipped to 89 ... 100 of 100, 40 ... 70 to 39 ... 50 of 50
        assert labels(out, "train/a.txt") == [[1, 0.945, 0.89, 0.11, 0.22]]
        text = capsys.readouterr().out
        for line in (
            "1 boxes of zero or negative size",
            "1 boxes outside their image",
            "1 objects without a readable bndbox",
            "1 images without an annotation file",
            "1 images whose annotation file is not valid XML",
            "1 images that are missing or cannot be read",
        ):
            assert line in text

    @pytest.mark.parametrize(
        ("flags", "code", "message"),
        [
            (["--splits", "val=nothing"], 1, "has none of nothing.txt"),
            (["--splits", "train"], 1, "no usable image for the val split among 1 (1 images in train"),
            (["--splits", "trian"], 2, "--splits trian: expected train, val, test"),
            (["--split-ratios", "1"], 2, "--split-ratios [1.0]: expected shares"),
            (["--lists", "Layout"], 1, "give --split-ratios"),
        ],
    )
    def test_mistakes(
        self, voc: Path, capsys: pytest.CaptureFixture[str], flags: list[str], code: int, message: str
    ) -> None:
        assert self.run(voc, *flags)[0] == code
        text = capsys.readouterr().err
        assert text.startswith("error: ") and message in text and text.count("\n") == 1

    def test_wrong_source_and_used_out(self, voc: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["voc", "--source", str(voc / "JPEGImages"), "--out", str(voc.parent / "out")]) == 1
        assert "has no folder Annotations" in capsys.readouterr().err
        assert main(["voc", "--source", str(voc), "--out", str(voc)]) == 1
        assert "is not empty" in capsys.readouterr().err

    def test_image_in_two_lists(self, voc: Path, capsys: pytest.CaptureFixture[str]) -> None:
        voc_list(voc, "val", "a", "b")
        assert self.run(voc)[0] == 1
        assert "names a, which is in the train split already" in capsys.readouterr().err

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "gbk", "latin-1"])
    def test_encodings_of_xml(self, voc: Path, encoding: str) -> None:
        name = "caf\xe9" if encoding == "latin-1" else "红"
        text = (
            f'<?xml version="1.0" encoding="{encoding}"?><annotation>{voc_object(name, (11, 6, 30, 25))}</annotation>'
        )
        (voc / "Annotations/a.xml").write_bytes(text.encode(encoding))
        _, out = self.run(voc)
        assert name in load_dataset_config(out / "data.yaml").names

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\xff\xfe\x00",
            b'<?xml version="1.0" encoding="nonsense"?><a/>',
            b'<?xml version="1.0" encoding="big5"?><a>\xff</a>',
            b'<?xml version="1.0" encoding="zip"?><a/>',
            b'<!DOCTYPE a [<!ENTITY x "xxxxxxxxxx"><!ENTITY y "&x;&x;&x;">]><a>&y;</a>',
            b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>',
            b"<a>" * 100_000,
        ],
    )
    def test_xml_that_is_none(self, voc: Path, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
        voc_list(voc, "train", "a", "bad")
        (voc / "Annotations/bad.xml").write_bytes(content)
        assert self.run(voc)[0] == 0
        assert "1 images whose annotation file is not valid XML" in capsys.readouterr().out

    @pytest.mark.parametrize("corner", ["nan", "inf", "1e400", "", "x", "1 2", "9" * 5000])
    def test_corners_that_are_none(self, voc: Path, capsys: pytest.CaptureFixture[str], corner: str) -> None:
        voc_image(voc, "a", voc_object("dog", (11, 6, 30, 25)).replace("30", corner))
        assert self.run(voc)[0] == 0
        assert "1 objects without a readable bndbox" in capsys.readouterr().out

    def test_an_error_names_three_reasons_at_most(self, voc: Path, capsys: pytest.CaptureFixture[str]) -> None:
        boxes = [(5, 5, 1, 1), (500, 500, 600, 600)]
        voc_image(
            voc, "a", *(voc_object("dog", box) for box in boxes), voc_object("", (1, 1, 9, 9)), voc_object("", boxes[0])
        )
        (voc / "JPEGImages/a.jpg").write_bytes(b"")
        voc_list(voc, "train", *"acde")
        (voc / "Annotations/c.xml").write_text("<annotation>")
        (voc / "Annotations/d.xml").write_text("<annotation><object/></annotation>")
        assert self.run(voc)[0] == 1
        error = capsys.readouterr().err
        assert "no usable image for the train split" in error and error.count("first:") == 3
        assert "more kinds" in error

    def test_lists_that_are_binary_or_name_files_with_blanks(
        self, voc: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        voc_image(voc, "my photo", voc_object("dog", (11, 6, 30, 25)))
        (voc / "ImageSets/Main/train.txt").write_bytes("\ufeffmy photo\r\na  1\r\n".encode())
        assert self.run(voc)[0] == 0
        assert sorted(path.name for path in (voc.parent / "out/images/train").iterdir()) == ["a.jpg", "my photo.jpg"]
        for content, message in (
            (b"\x00\x9c\xff", "is no text in UTF-8"),
            (b"\x9c\xff\n", "no usable image for the train"),
        ):
            (voc / "ImageSets/Main/train.txt").write_bytes(content)
            capsys.readouterr()
            assert main(["voc", "--source", str(voc), "--out", str(voc.parent / "other")]) == 1
            assert message in capsys.readouterr().err

    def test_equal_names_in_two_sources(self, voc: Path, capsys: pytest.CaptureFixture[str]) -> None:
        other = voc.parent / "other"
        voc_image(other, "a", voc_object("dog", (1, 1, 10, 10)))
        voc_list(other, "train", "a")
        out = voc.parent / "out"
        assert main(["voc", "--source", str(voc), str(other), "--out", str(out), "--splits", "train", "val"]) == 0
        assert len(list((out / "images/train").iterdir())) == 2
        assert labels(out, "train/a_2.txt")[0][1:] == [0.05, 0.1, 0.1, 0.2]
        assert "1 images renamed" in capsys.readouterr().out

    @pytest.mark.parametrize("flag", [("--names", "a,a"), ("--names", ""), ("--split-ratios", "nan", "1")])
    def test_flags_out_of_range(self, voc: Path, capsys: pytest.CaptureFixture[str], flag: tuple[str, ...]) -> None:
        assert self.run(voc, *flag)[0] == 2
        assert capsys.readouterr().err.startswith(f"error: {flag[0]}")

    def test_bccd(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = tmp_path / "bccd"
        source = shared_path("data/bccd")
        assert main(["voc", "--source", str(source), "--out", str(out), "--names", "RBC,WBC,Platelets"]) == 0
        assert "2 boxes of zero or negative size" in capsys.readouterr().out
        config = load_dataset_config(out / "data.yaml")
        indices = [build_index(config.split(split), config.nc, cache=False) for split in ("train", "val", "test")]
        assert [len(index) for index in indices] == [205, 87, 72]
        # 4155 RBC of which two have no size, 372 WBC, 361 platelets
        assert sum(index.class_counts(3) for index in indices).tolist() == [4153, 372, 361]
        assert all(index.problems == [] for index in indices)
        assert {(record.width, record.height) for index in indices for record in index.records} == {(640, 480)}

    def test_an_image_of_another_size_than_annotated_is_told(
        self, voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        voc_image(voc, "a", "<size><width>50</width><height>100</height></size>", voc_object("dog", (11, 6, 30, 25)))
        assert main(["voc", "--source", str(voc), "--out", str(tmp_path / "out")]) == 0
        told = capsys.readouterr().out
        assert "1 images of another size than their annotations say" in told and "100 x 50, not (50, 100)" in told


def coco_document(**changes: Any) -> dict[str, Any]:
    document = {
        "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 9, "file_name": "sub/b.jpg"}],
        "categories": [{"id": 3, "name": "dog"}, {"id": 1, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 5, 20, 20], "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 1, "bbox": [0, 0, 100, 50], "iscrowd": 1},
        ],
    }
    return document | changes


class TestCoco:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        write_image(tmp_path / "pics/a.jpg")
        write_image(tmp_path / "pics/val/sub/b.jpg")
        return tmp_path

    def run(self, root: Path, documents: dict[str, Any], *flags: str) -> tuple[int, Path]:
        for name, document in documents.items():
            (root / name).write_text(json.dumps(document))
        files = [str(root / name) for name in documents]
        out = root / "out"
        return main(["coco", "--annotations", *files, "--images", str(root / "pics"), "--out", str(out), *flags]), out

    def split(self, **changes: Any) -> dict[str, Any]:
        document = coco_document(**changes)
        first, second = document["images"]
        return {
            "instances_train.json": document | {"images": [first]},
            "instances_val.json": document | {"images": [second]},
        }

    @pytest.mark.parametrize(
        ("width", "height", "told"),
        [(100, 50, False), ("100", 50.0, False), (None, [1], False), (0, 0, False), (10**400, 1, False),
         (50, 100, True), (200, 100, True)],
    )  # fmt: skip
    def test_an_image_of_another_size_than_annotated_is_told(
        self, root: Path, capsys: pytest.CaptureFixture[str], width: Any, height: Any, told: bool
    ) -> None:
        documents = self.split()
        for document in documents.values():
            document["images"] = [{**image, "width": width, "height": height} for image in document["images"]]
        assert self.run(root, documents)[0] == 0
        assert ("images of another size than their annotations say" in capsys.readouterr().out) == told

    def test_categories_become_consecutive(self, root: Path) -> None:
        code, out = self.run(root, self.split())
        assert code == 0
        assert load_dataset_config(out / "data.yaml").names == ("cat", "dog")
        # 10 to 30 of 100, 5 to 25 of 50
        assert labels(out, "train/a.txt") == [[1, 0.2, 0.3, 0.2, 0.4]]
        assert labels(out, "val/sub/b.txt") == []

    def test_crowds(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        _, out = self.run(root, self.split(), "--keep-crowd")
        assert labels(out, "train/a.txt") == [[1, 0.2, 0.3, 0.2, 0.4], [0, 0.5, 0.5, 1, 1]]
        assert "crowd regions" not in capsys.readouterr().out

    def test_crowds_are_left_out_and_counted(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.run(root, self.split())
        assert "crowd regions (--keep-crowd keeps them)" in capsys.readouterr().out

    def test_segments(self, root: Path) -> None:
        entry = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 5, 20, 20]}
        parts = [[10, 5, 30, 5, 30, 25]], [[10, 5, 20, 5, 20, 25], [20, 5, 30, 5, 30, 25]]
        entries = [{**entry, "segmentation": outline} for outline in parts]
        _, out = self.run(root, self.split(annotations=entries), "--segments")
        # an object of two polygons keeps its box
        assert labels(out, "train/a.txt") == [[1, 0.1, 0.1, 0.3, 0.1, 0.3, 0.5], [1, 0.2, 0.3, 0.2, 0.4]]

    def test_one_file_dealt_by_ratios(self, root: Path) -> None:
        write_image(root / "pics/sub/b.jpg")
        code, out = self.run(root, {"all.json": coco_document()}, "--split-ratios", "0.5", "0.5")
        assert code == 0
        names = sorted(str(path.relative_to(out / "images")) for path in (out / "images").rglob("*.jpg"))
        assert len(names) == 2 and names[0].startswith("train/") and names[1].startswith("val/")

    def test_name_that_leads_out_of_the_folder(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write_image(root / "evil.jpg")
        images = [{"id": 7, "file_name": "../evil.jpg"}, {"id": 9, "file_name": "sub/b.jpg"}]
        documents = self.split(images=images)
        documents["instances_train.json"]["images"].append({"id": 8, "file_name": "a.jpg"})
        code, out = self.run(root, documents)
        assert code == 0
        assert "1 images whose name leads out of the folder, first: ../evil.jpg" in capsys.readouterr().out
        assert not (out / "images/evil.jpg").exists()

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"categories": None}, "has no list 'categories'"),
            ({"annotations": [{"image_id": 7}]}, "none of its 1 annotations has a readable image_id, category_id and"),
            ({"categories": [{"id": [1], "name": "a"}]}, "a category is {'id': [1], 'name': 'a'}; expected an id"),
            ({"categories": [{"id": 1, "name": None}]}, "expected an id and a name such as 1 and 'cat'"),
            ({"categories": [{"id": 1, "name": "a" * 5000}]}, "the name of category 1 is empty or too long"),
        ],
    )
    def test_not_cocos_form(
        self, root: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
    ) -> None:
        assert self.run(root, {"train.json": coco_document(**changes)})[0] == 1
        assert message in capsys.readouterr().err

    def test_files_that_disagree(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        documents = self.split()
        documents["instances_val.json"] = documents["instances_val.json"] | {"categories": [{"id": 3, "name": "cow"}]}
        assert self.run(root, documents)[0] == 1
        assert "category 3 is 'cow' here and 'dog' in another file" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("kind", "field", "value", "counted"),
        [
            *(("images", "file_name", value, "images without a readable id") for value in (5, None, "", [], {})),
            ("images", "file_name", "a" * 5000, "images whose suffix training does not read"),
            ("images", "file_name", "a" * 5000 + ".jpg", "images that are missing or cannot be read"),
            ("images", "file_name", "/etc/a.jpg", "images whose name leads out of the folder"),
            ("images", "file_name", "..", "images whose name leads out of the folder"),
            ("images", "file_name", ".", "images whose name leads out of the folder"),
            ("images", "file_name", "\ud800.jpg", "images that are missing or cannot be read"),
            *(("images", "id", value, "images without a readable id") for value in ([1], {}, None, 1.5, True)),
            ("images", "id", 9, "images of an id that another has"),
            *(("annotations", "bbox", value, "objects without a readable image_id") for value in (
                None, "1234", 5, [], [1, 2, 3], [1, 2, 3, 4, 5], ["1", 2, 3, 4], [[1], 2, 3, 4], [0, 0, 10**400, 5],
                [0, 0, float("nan"), 5], [0, 0, float("inf"), 5], [True, 0, 5, 5], {"x": 1},
            )),
            ("annotations", "bbox", [5, 5, -3, 4], "boxes of zero or negative size"),
            *(("annotations", "category_id", value, "without a readable image_id") for value in ([], {}, None, 1.5)),
            ("annotations", "category_id", 10**400, "objects of a category that the file does not define"),
            *(("annotations", "image_id", value, "without a readable image_id") for value in ([], {}, None)),
            ("annotations", "image_id", "7", "objects of an image that the file does not list"),
            *(("annotations", "segmentation", value, "outlines that are no polygons") for value in (
                [5], ["abcdef"], 7, "x", [[1, 2, 3]], [[1, 2, 3, 4, 5, "6"]], [[1, 2, 3, 4, 5, 10**400]],
            )),
        ],
    )  # fmt: skip
    def test_a_bad_entry_is_left_out_and_counted(
        self, root: Path, capsys: pytest.CaptureFixture[str], kind: str, field: str, value: Any, counted: str
    ) -> None:
        document = coco_document()
        document["annotations"] = [{"image_id": 7, "category_id": 3, "bbox": [10, 5, 20, 20]}]
        bad = (
            {"id": 8, "file_name": "a.jpg"} if kind == "images" else dict(document["annotations"][0], bbox=[1, 1, 9, 9])
        )
        document[kind].append({**bad, field: value})
        (root / "instances_val.json").write_text(json.dumps({**coco_document(), "annotations": []}))
        files = ("--annotations", str(root / "instances_train.json"), str(root / "instances_val.json"))
        code, out = self.run(root, {"instances_train.json": document}, *files, "--segments")
        text = capsys.readouterr()
        assert code == 0 and "1 " in text.out and counted in text.out, text
        assert len(max(text.out.splitlines(), key=len)) < 600
        assert [1, 0.2, 0.3, 0.2, 0.4] in labels(out, "train/a.txt")

    def test_categories_of_one_name_are_one_class(self, root: Path) -> None:
        categories = [{"id": 1, "name": "cell"}, {"id": 3, "name": "cell"}, {"id": 5, "name": " no "}]
        _, out = self.run(root, self.split(categories=categories))
        assert load_dataset_config(out / "data.yaml").names == ("cell", "no")
        assert labels(out, "train/a.txt") == [[0, 0.2, 0.3, 0.2, 0.4]]

    def test_images_whose_label_files_would_be_one(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for name in ("a.png", "sub/a.jpg"):
            write_image(root / "pics" / name)
        images = [{"id": i, "file_name": name} for i, name in enumerate(("a.jpg", "a.png", "sub/a.jpg", "a.jpg"))]
        annotations = [{"image_id": i, "category_id": 3, "bbox": [i, 5, 20, 20]} for i in range(4)]
        documents = self.split(annotations=annotations)
        documents["instances_train.json"]["images"] = images
        assert self.run(root, documents)[0] == 0
        out = root / "out"
        assert sorted(path.name for path in (out / "labels/train").rglob("*.txt")) == ["a.txt", "a.txt", "a_2.txt"]
        assert labels(out, "train/a_2.txt")[0][1] == 0.11, "1 to 21 of 100"
        assert os.path.realpath(out / "images/train/a_2.png") == str(root / "pics/a.png")
        text = capsys.readouterr().out
        assert "1 images renamed" in text and "1 images that are listed twice in a split" in text

    def test_names_with_backslashes_and_other_scripts(self, root: Path) -> None:
        write_image(root / "pics/子/图.jpg")
        images = [{"id": 7, "file_name": "子\\图.jpg"}]
        documents = self.split()
        documents["instances_train.json"]["images"] = images
        code, out = self.run(root, documents)
        assert code == 0 and labels(out, "train/子/图.txt") == [[1, 0.2, 0.3, 0.2, 0.4]]

    @pytest.mark.parametrize(
        "content", [b"", b"\xff\xfe", b"[" * 100000, b"[]", b"1", b'{"images": [1' + b"0" * 5000, b"\x00\x01", b"NaN"]
    )
    def test_any_bytes_are_one_line(self, root: Path, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
        (root / "train.json").write_bytes(content)
        assert main(["coco", "--annotations", str(root / "train.json"), "--images", str(root), "--out", "out"]) == 1
        text = capsys.readouterr().err
        assert text.startswith("error: ") and text.count("\n") == 1 and len(text) < 500

    def test_split_of_a_file(self) -> None:
        assert split_of("x/instances_val2017.json") == ("val", Path("x/instances_val2017.json"))
        assert split_of("val=all.json") == ("val", Path("all.json"))
        assert split_of("all.json") == ("train", Path("all.json"))


def test_splits_are_dealt_alike_whatever_the_order() -> None:
    names = [f"image{i}" for i in range(100)]
    dealt = assign_splits(names, (0.7, 0.2, 0.1), seed=0)
    assert [list(dealt.values()).count(split) for split in ("train", "val", "test")] == [70, 20, 10]
    assert assign_splits(names[::-1], (7, 2, 1), seed=0) == dealt
    assert assign_splits(names, (0.7, 0.2, 0.1), seed=1) != dealt
    # dealt in the order of the SHA-256 of "0 image<i>", so the same everywhere
    assert assign_splits(names[:8], (2, 1, 1), seed=0) == {
        **dict.fromkeys(("image2", "image7", "image6", "image4"), "train"),
        **dict.fromkeys(("image0", "image1"), "val"),
        **dict.fromkeys(("image5", "image3"), "test"),
    }
    with pytest.raises(UsageError):
        assign_splits(names, (0.7, -0.2), seed=0)
    assert set(assign_splits(["a", "b\udcff", "\ud800"], (0.5, 0.5), seed=0)) == {"a", "b\udcff", "\ud800"}  # no text
