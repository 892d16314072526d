"""data.convert: VOC and COCO annotations written in YOLO's format."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from data.coco import split_of
from data.config import load_dataset_config
from data.conversion import assign_splits
from data.convert import main as convert
from data.labels import build_index
from tests.golden import shared_path
from utils.cli import run_command
from utils.errors import UsageError


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
            ({"annotations": [{"image_id": 7}]}, "an entry of 'annotations' lacks one of bbox, category_id, image_id"),
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
