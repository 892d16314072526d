"""data.labels and what it is made of: label rows, image checks, the cache, the index, the audit."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import data.labels
from data.audit import find_boxes_beyond_edge, find_repeated_images
from data.audit import main as audit
from data.decoding.decode import decode_image
from data.decoding.images import check_image, find_images
from data.index_cache import cache_locations
from data.label_rows import label_path, parse_labels
from data.labels import DatasetIndex, build_index
from tests.golden import load_json
from utils.errors import UserError


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def add(root: Path, name: str, rows: str | None = "", size: tuple[int, int] = (40, 30)) -> Path:
    """Writes images/<name> of (width, height) pixels, and its label file unless rows is None."""
    path = root / "images" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = int.from_bytes(name.encode(), "big") % 1000
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8))
    if rows is not None:
        label = Path(label_path(str(path)))
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(rows)
    return path


def index(root: Path, nc: int = 3, **kwargs: bool) -> DatasetIndex:
    return build_index([root / "images"], nc, **kwargs)


def kinds(result: DatasetIndex) -> dict[str, int]:
    return result.problem_counts()


class TestRows:
    def test_boxes(self) -> None:
        parsed = parse_labels(b"\xef\xbb\xbf2 0.5 0.25 0.1 0.2\n\n0 1 1 0.5 .5 \r\n")
        np.testing.assert_array_equal(parsed.labels, np.float32([[2, 0.5, 0.25, 0.1, 0.2], [0, 1, 1, 0.5, 0.5]]))
        assert parsed.lines.tolist() == [1, 3]
        assert parsed.segments == () and parsed.issues == ()

    def test_polygon_becomes_its_bounds(self) -> None:
        parsed = parse_labels(b"1 0.2 0.2 0.8 0.3 0.5 0.9")
        # x 0.2 ... 0.8, y 0.2 ... 0.9: centre 0.5, 0.55 and size 0.6, 0.7
        np.testing.assert_allclose(parsed.labels, [[1, 0.5, 0.55, 0.6, 0.7]], rtol=1e-6)
        np.testing.assert_allclose(parsed.segments[0], [[0.2, 0.2], [0.8, 0.3], [0.5, 0.9]], rtol=1e-6)

    def test_box_among_polygons_gets_its_corners(self) -> None:
        parsed = parse_labels(b"0 0.5 0.5 0.2 0.4\n1 0.2 0.2 0.8 0.3 0.5 0.9")
        assert len(parsed.segments) == len(parsed.labels) == 2
        np.testing.assert_allclose(parsed.segments[0], [[0.4, 0.3], [0.6, 0.3], [0.6, 0.7], [0.4, 0.7]], rtol=1e-6)
        assert parsed.segments[0].dtype == np.float32

    def test_two_polygons_of_equal_bounds_are_two_objects(self) -> None:
        parsed = parse_labels(b"1 0 0 1 0 1 1\n1 0 0 1 1 0 1")
        assert len(parsed.labels) == 2 and not parsed.issues

    @pytest.mark.parametrize(
        ("row", "kind", "detail"),
        [
            ("0 0.5 0.5 0.1", "wrong column count", "4 columns"),
            ("0 0.5 0.5 0.1 0.1 0.9", "wrong column count", "prediction with its confidence"),
            ("0 0.5 0.5 0.1 abc", "not a number", "abc"),
            ("0 0.5 0.5 0.1 nan", "not a number", "nan"),
            ("0.5 0.5 0.5 0.1 0.1", "not a number", "class 0.5 is not a whole number"),
            ("-1 0.5 0.5 0.1 0.1", "negative class", "-1"),
            ("0 0.5 0.5 1.2 0.3", "coordinates out of range", "1.2 is outside"),
            ("0 -0.01 0.5 0.1 0.1", "coordinates out of range", "-0.01"),
            ("0 320 240 100 50", "coordinates out of range", "are these pixels?"),
            ("0 0.5 0.5 0 0.3", "zero-size box", "width 0, height 0.3"),
            ("0 0.5 0.5 0.5 0.5 0.5 0.9", "zero-size box", "width 0"),
            ("1 0.5 0.5 0.1 0.1", "duplicate row", "already"),
        ],
    )
    def test_bad_row_is_left_out_and_named(self, row: str, kind: str, detail: str) -> None:
        parsed = parse_labels(f"1 0.5 0.5 0.1 0.1\n{row}\n1 0.2 0.2 0.1 0.1".encode())
        assert parsed.lines.tolist() == [1, 3]
        ((line, found, text),) = parsed.issues
        assert (line, found) == (2, kind)
        assert detail in text and "row left out" in text

    def test_overshoot_of_rounding_is_clipped(self) -> None:
        parsed = parse_labels(b"0 0.5 0.5 1.0005 1\n0 0.5 0.5 1.002 1")
        np.testing.assert_array_equal(parsed.labels, np.float32([[0, 0.5, 0.5, 1, 1]]))
        assert [(line, kind) for line, kind, _ in parsed.issues] == [
            (1, "coordinates clipped"),
            (2, "coordinates out of range"),
        ]

    def test_label_paths_as_yolov5(self) -> None:
        pairs = load_json("postprocess/helpers.json")["yolov5_7.0"]["img2label_paths"]
        assert len(pairs) == 5
        for image, label in pairs:
            assert label_path(image) == label


class TestImages:
    @pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.bmp", "a.webp", "a.tif"])
    def test_size(self, tmp_path: Path, name: str) -> None:
        check = check_image(str(add(tmp_path, name, size=(50, 20))))
        assert (check.width, check.height, check.kind) == (50, 20, "")

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
    def test_size_is_that_of_the_decoded_image(self, tmp_path: Path, suffix: str, orientation: int) -> None:
        path = tmp_path / f"turned.{suffix}"
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(np.zeros((20, 50, 3), np.uint8)).save(path, exif=exif)
        check = check_image(str(path))
        assert (check.height, check.width) == decode_image(str(path)).shape[:2]
        assert check.kind == ("" if orientation == 1 else "rotated by EXIF")

    def test_jpeg_is_turned(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(np.zeros((20, 50, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
        check = check_image(str(tmp_path / "a.jpg"))
        assert (check.width, check.height) == (20, 50)

    @pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.bmp", "a.tif"])
    @pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
    @pytest.mark.parametrize("share", [0.9, 0.5])
    def test_truncated(self, tmp_path: Path, name: str, share: float) -> None:
        path = add(tmp_path, name, size=(200, 200))
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        check = check_image(str(path))
        assert check.width == 0
        assert check.kind in ("truncated image", "unreadable image")

    def test_bytes_after_the_end_do_no_harm(self, tmp_path: Path) -> None:
        path = add(tmp_path, "a.jpg")
        path.write_bytes(path.read_bytes() + b"\0\0trailer")
        assert check_image(str(path)).width == 40

    @pytest.mark.parametrize("content", [b"", b"not an image", b"\xff\xd8\xff"])
    def test_not_an_image(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.jpg").write_bytes(content)
        assert check_image(str(tmp_path / "a.jpg")).kind == "unreadable image"

    def test_tiny(self, tmp_path: Path) -> None:
        assert check_image(str(add(tmp_path, "a.png", size=(9, 50)))).kind == "tiny image"
        assert check_image(str(add(tmp_path, "b.png", size=(10, 10)))).width == 10

    def test_lists(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        a, b, c = (str(add(tmp_path, name)) for name in ("a.png", "b.png", "c.png"))
        work = tmp_path / "work"
        work.mkdir()
        monkeypatch.chdir(work)
        lines = [
            a,
            "./images/b.png",
            "./images/../images/b.png",
            "././images/a.png",
            "images//c.png",
            "images/c.png",
            "../images/a.png",
            "",
            "./images/none.png",
            "./notes.md",
        ]
        (tmp_path / "list.txt").write_text("\n".join(lines))
        found, rejected = find_images([tmp_path / "list.txt"])
        assert found == [a, b, c]
        assert [problem.kind for problem in rejected] == ["missing image", "not an image"]

    def test_source_of_a_wrong_sort(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="do not exist"):
            find_images([tmp_path / "nowhere"])
        (tmp_path / "a.csv").write_text("")
        with pytest.raises(UserError, match="expected a folder or a .txt list"):
            find_images([tmp_path / "a.csv"])


class TestIndex:
    def test_records_and_counts(self, tmp_path: Path) -> None:
        add(tmp_path, "b.png", "1 0.5 0.5 0.2 0.2\n2 0.5 0.5 0.1 0.1")
        add(tmp_path, "deep/a.jpg", "", size=(64, 20))
        add(tmp_path, "c.png", None)
        (tmp_path / "images/broken.jpg").write_bytes(b"x")
        result = index(tmp_path)
        assert [Path(record.path).name for record in result.records] == ["b.png", "c.png", "a.jpg"]
        assert result.counts == {"images": 3, "dropped": 1, "boxes": 2, "labelled": 1, "empty": 1, "missing": 1}
        assert (result.records[2].width, result.records[2].height) == (64, 20)
        assert all(record.labels.dtype == np.float32 and record.labels.shape[1] == 5 for record in result.records)
        assert kinds(result) == {"unreadable image": 1}
        assert result.class_counts(3).tolist() == [0, 1, 1]
        assert "3 images, 2 boxes, 2 backgrounds, 1 dropped" in result.summary()

    def test_class_beyond_nc_is_left_out(self, tmp_path: Path) -> None:
        path = add(tmp_path, "a.png", "0 0.5 0.5 0.1 0.1\n\n3 0.2 0.2 0.1 0.1\n1 0.1 0.1 0.1 0.1")
        result = index(tmp_path)
        assert result.records[0].labels[:, 0].tolist() == [0, 1]
        (problem,) = result.problems
        assert (problem.path, problem.line, problem.kind) == (label_path(str(path)), 3, "class out of range")

    def test_segments_stay_with_their_rows(self, tmp_path: Path) -> None:
        add(tmp_path, "a.png", "3 0 0 0.5 0 0.5 0.5\n1 0.5 0.5 1 0.5 1 1\n0 0.5 0.5 0.2 0.2")
        record = index(tmp_path).records[0]
        assert record.labels[:, 0].tolist() == [1, 0]
        assert record.segments[0][0].tolist() == [0.5, 0.5] and len(record.segments) == 2

    def test_most_classes_beyond_nc_is_an_error(self, tmp_path: Path) -> None:
        add(tmp_path, "a.png", "1 0.5 0.5 0.1 0.1\n7 0.2 0.2 0.1 0.1")
        with pytest.raises(UserError, match=r"2 of 2 labels are of a class .* nc = 1 .* \(the largest is 7"):
            index(tmp_path, nc=1)

    def test_single_class(self, tmp_path: Path) -> None:
        add(tmp_path, "a.png", "1 0.5 0.5 0.1 0.1\n7 0.2 0.2 0.1 0.1")
        result = index(tmp_path, nc=1, single_class=True)
        np.testing.assert_allclose(
            result.records[0].labels, [[0, 0.5, 0.5, 0.1, 0.1], [0, 0.2, 0.2, 0.1, 0.1]], rtol=1e-6
        )

    def test_labels_without_image(self, tmp_path: Path) -> None:
        add(tmp_path, "a.png", "1 0.5 0.5 0.1 0.1")
        (tmp_path / "labels/lost.txt").write_text("0 0.5 0.5 0.1 0.1")
        (tmp_path / "labels/classes.txt").write_text("cat")
        (problem,) = index(tmp_path).problems
        assert (problem.kind, Path(problem.path).name) == ("label file without image", "lost.txt")
        (tmp_path / "labels/lost.txt").rename(tmp_path / "labels/a.TXT")
        assert kinds(index(tmp_path)) == {"label file without image": 1}

    def test_nothing_to_train_on(self, tmp_path: Path) -> None:
        (tmp_path / "images").mkdir()
        with pytest.raises(UserError, match="train: no images in"):
            build_index([tmp_path / "images"], 3, prefix="train")
        add(tmp_path, "a.png", None)
        assert index(tmp_path).counts["boxes"] == 0
        with pytest.raises(UserError, match=r"1 images but not one box; labels are looked for as .*labels/a\.txt"):
            index(tmp_path, need_boxes=True)
        (tmp_path / "images/a.png").write_bytes(b"")
        with pytest.raises(UserError, match="none of the 1 images"):
            index(tmp_path)

    def test_content_hash_follows_content_alone(self, tmp_path: Path) -> None:
        for name in ("one", "two"):
            add(tmp_path / name, "x/a.png", "1 0.5 0.5 0.1 0.1")
            add(tmp_path / name, "y/b.png", "1 0.5 0.5 0.1 0.1")
        first, second = (index(tmp_path / name).content_hash for name in ("one", "two"))
        assert first == second
        (tmp_path / "two/labels/x/a.txt").write_text("2 0.5 0.5 0.1 0.1")
        assert index(tmp_path / "two").content_hash != first


class TestCache:
    @pytest.fixture
    def cached(self, tmp_path: Path) -> Path:
        add(tmp_path, "a.png", "1 0.5 0.5 0.1 0.1\n5 0.5 0.5 0.1 0.1\n1 0 0 0.5 0 0.5 0.5")
        add(tmp_path, "b.png", "x")
        add(tmp_path, "c.png", None)
        index(tmp_path)
        assert (tmp_path / "labels.index.cache").is_file()
        return tmp_path

    @pytest.fixture
    def checked(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Names of the images that are checked rather than taken from the cache."""
        names: list[str] = []
        monkeypatch.setattr(data.labels, "check_image", lambda path: names.append(Path(path).name) or check_image(path))
        return names

    def test_same_index_from_the_cache(self, cached: Path, checked: list[str]) -> None:
        again, fresh = index(cached), index(cached, cache=False)
        assert checked == ["a.png", "b.png", "c.png"]  # for `fresh` alone
        assert again.problems == fresh.problems and len(again.problems) == 2
        assert again.counts == fresh.counts and again.content_hash == fresh.content_hash
        for one, other in zip(again.records, fresh.records):
            assert (one.path, one.width, one.height) == (other.path, other.width, other.height)
            np.testing.assert_array_equal(one.labels, other.labels)
            assert len(one.segments) == len(other.segments)
            for a, b in zip(one.segments, other.segments):
                np.testing.assert_array_equal(a, b)

    def test_number_of_classes_is_not_cached(self, cached: Path, checked: list[str]) -> None:
        assert index(cached, nc=6).counts["boxes"] == 3
        assert checked == []

    def test_only_what_changed_is_checked(self, cached: Path, checked: list[str]) -> None:
        label = cached / "labels/a.txt"
        status = label.stat()
        label.write_text(label.read_text().replace("1 0.5", "2 0.5"))
        os.utime(label, ns=(status.st_atime_ns, status.st_mtime_ns))  # neither size nor time tells
        add(cached, "d.png", "0 0.5 0.5 0.1 0.1")
        result = index(cached)
        assert checked == ["a.png", "d.png"]
        assert result.records[0].labels[0, 0] == 2
        add(cached, "b.png", size=(60, 60), rows="x")
        (cached / "images/c.png").unlink()
        checked.clear()
        assert [record.width for record in index(cached).records] == [40, 60, 40]
        assert checked == ["b.png"]
        checked.clear()
        index(cached)
        assert checked == []

    def test_unusable_cache_is_ignored(self, cached: Path, checked: list[str]) -> None:
        (cached / "labels.index.cache").write_bytes(b"PK\x03\x04 and no more")
        assert index(cached).counts["images"] == 3
        assert len(checked) == 3

    def test_pickle_in_the_cache_is_not_executed(self, cached: Path, tmp_path: Path) -> None:
        class Attack:
            def __reduce__(self) -> tuple:
                return os.mkdir, (str(tmp_path / "executed"),)

        with open(cached / "labels.index.cache", "wb") as stream:
            np.savez(stream, header=np.array([Attack()], dtype=object))
        assert index(cached).counts["images"] == 3
        assert not (tmp_path / "executed").exists()

    def test_a_cache_that_writes_to_the_terminal_is_ignored(self, cached: Path, checked: list[str]) -> None:
        path = cached / "labels.index.cache"
        with np.load(path) as arrays:
            content = dict(arrays)
        header = json.loads(content["header"].tobytes())
        header["issues"] = {"0": [[0, "\x1b[31mred", "detail"]]}
        content["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
        with open(path, "wb") as stream:
            np.savez(stream, **content)
        assert "red" not in index(cached).summary()
        assert len(checked) == 3

    def test_folder_that_cannot_be_written(self, tmp_path: Path, checked: list[str]) -> None:
        add(tmp_path, "a.png")
        beside, home = cache_locations([tmp_path / "images"])
        beside.mkdir()  # stands for a folder without write access, also for root
        index(tmp_path)
        assert home.is_file()
        index(tmp_path)
        assert checked == ["a.png"]
        assert not list(tmp_path.glob("*.tmp"))

    def test_nothing_is_written_without_cache(self, tmp_path: Path) -> None:
        add(tmp_path, "a.png")
        index(tmp_path, cache=False)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "labels"]


class TestAudit:
    def test_same_image_in_two_splits(self, tmp_path: Path) -> None:
        image = add(tmp_path, "train/a.png")
        add(tmp_path, "val/b.png", size=(41, 30))
        for name in ("train/z.png", "val/c.png"):
            (tmp_path / "images" / name).write_bytes(image.read_bytes())
        splits = {split: build_index([tmp_path / "images" / split], 3) for split in ("train", "val")}
        problems = {Path(problem.path).name: problem for problem in find_repeated_images(splits)}
        assert set(problems) == {"z.png", "c.png"}
        assert problems["z.png"].kind == "same image twice in a split"
        assert problems["c.png"].kind == "same image in two splits"
        assert "in val; the same as" in problems["c.png"].detail and "a.png in train" in problems["c.png"].detail

    def test_box_beyond_edge(self, tmp_path: Path) -> None:
        add(tmp_path, "a.png", "1 0.9 0.5 0.4 0.2\n1 0.9 0.5 0.2 0.2")
        (problem,) = find_boxes_beyond_edge(index(tmp_path))  # 0.9 + 0.4 / 2 - 1 = 0.1
        assert "a box of class 1 reaches 10% of the side outside" in problem.detail

    def test_command(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        add(tmp_path, "train/a.png", "0 0.5 0.5 0.5 0.5\n0 0.5 0.5 2 0.5")
        add(tmp_path, "val/a.png", "1 0.5 0.5 0.5 0.5", size=(400, 300))
        (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, dog]")
        audit(["--data", str(tmp_path / "data.yaml")])
        text = capsys.readouterr().out
        assert "labels/train/a.txt:2: 2 is outside 0...1" in text
        assert "1 coordinates out of range" in text
        lines = [line.split() for line in text.splitlines()]
        assert ["0", "cat", "1", "0", "none", "in", "val"] in lines
        # sqrt(20 x 15) = 17 px, sqrt(200 x 150) = 173 px
        assert ["16", "-", "32", "1", "#" * 30] in lines and ["128", "-", "256", "1", "#" * 30] in lines

    def test_command_with_a_missing_file(self) -> None:
        with pytest.raises(UserError, match="data file 'no/such.yaml' does not exist"):
            audit(["--data", "no/such.yaml"])
