"""What may lie in the folders of a data set: files that are none, links that lead back, damage of every kind."""

from __future__ import annotations

import io
import json
import os
import random
import socket
import struct
import sys
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from data.audit import main as audit
from data.augmentation.augment import AugmentConfig
from data.dataset import DetectionDataset
from data.decoding.decode import ImageError, ImageReader, decode_bytes, decode_image
from data.decoding.images import check_image, find_images
from data.index_cache import read_cache
from data.label_rows import LABEL_FAULTS, MAX_ISSUES, MAX_LABEL_BYTES, MAX_ROWS, label_path, parse_labels
from data.labels import DatasetIndex, build_index
from utils.errors import UserError

ROWS = "1 0.5 0.5 0.2 0.2\n"
NOT_UTF8 = os.fsdecode(b"b\xe4r")


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def encoded(suffix: str, size_wh: tuple[int, int] = (40, 30), seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size_wh[1], size_wh[0], 3), np.uint8)
    return cv2.imencode(suffix, pixels)[1].tobytes()


def add(root: Path, name: str, rows: str | bytes | None = ROWS, content: bytes | None = None) -> Path:
    path = root / "images" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(path.suffix, seed=len(name)) if content is None else content)
    if rows is not None:
        label = Path(label_path(str(path)))
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_bytes(rows.encode() if isinstance(rows, str) else rows)
    return path


def index(root: Path, **kwargs: Any) -> DatasetIndex:
    return build_index([root / "images"], 3, **kwargs)


def names(result: DatasetIndex) -> list[str]:
    return [Path(record.path).name for record in result.records]


def chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def huge_png(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"\x78\x9c\x03\0\0\0\0\1") + chunk(b"IEND", b"")
    )


def float_tiff() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((30, 40), np.float32)).save(stream, "TIFF")
    return stream.getvalue()


def png_with_damage() -> bytes:
    content = bytearray(encoded(".png"))
    content[len(content) // 2 :][:200] = b""
    content[len(content) // 2 : len(content) // 2 + 200] = bytes(200)
    return bytes(content)


def jpeg_without_tables() -> bytes:
    content = encoded(".jpg")
    start = content.index(b"\xff\xc4")
    length = int.from_bytes(content[start + 2 : start + 4], "big")
    return content[: start + 4] + b"\xff" * (length - 2) + content[start + 2 + length :]


UNREADABLE = {
    "float.tif": float_tiff(),
    "huge.png": huge_png(40000, 40000),
    "wide.png": huge_png(1 << 21, 20),
    "damaged.png": png_with_damage(),
    "tables.jpg": jpeg_without_tables(),
    "empty.jpg": b"",
    "cut.jpg": encoded(".jpg")[:700],
    "cut.webp": encoded(".webp")[:700],
    "text.bmp": b"BM and no more",
}


class TestImages:
    @pytest.mark.parametrize("name", UNREADABLE)
    def test_what_the_loader_cannot_read_is_left_out_from_the_start(self, tmp_path: Path, name: str) -> None:
        add(tmp_path, "good.png")
        bad = add(tmp_path, name, content=UNREADABLE[name])
        with pytest.raises(ImageError):
            decode_image(str(bad))
        result = index(tmp_path)
        assert names(result) == ["good.png"] and result.counts["dropped"] == 1
        (problem,) = result.problems
        assert problem.path == str(bad) and problem.kind in ("unreadable image", "truncated image")
        assert "\n" not in str(problem)

    @pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif"])
    @pytest.mark.parametrize("seed", range(3))
    def test_a_sound_image_can_be_decoded(self, tmp_path: Path, suffix: str, seed: int) -> None:
        """Whatever is changed in a file: what the check takes, the decoder reads, and in that size."""
        rng = random.Random(seed)
        original = encoded(suffix)
        path = tmp_path / f"a{suffix}"
        taken = 0
        for _ in range(150):
            content = bytearray(original)
            place = rng.randrange(len(content) if rng.random() < 0.5 else min(700, len(content)))
            content[place : place + rng.choice((1, 1, 8))] = rng.randbytes(rng.choice((0, 1, 1, 8)))
            path.write_bytes(content)
            check = check_image(str(path))
            if check.width:
                taken += 1
                assert decode_image(str(path)).shape[:2] == (check.height, check.width)
        assert taken > 5 or suffix == ".png"  # whose checksums tell of every change

    def test_progressive_and_turned_files(self, tmp_path: Path) -> None:
        for name, options in {"progressive": {"progressive": True}, "grey": {}, "cmyk": {}, "turned": {}}.items():
            path = tmp_path / f"{name}.jpg"
            pixels = np.zeros((120, 210, 3), np.uint8)
            if name == "turned":
                exif = Image.Exif()
                exif[0x0112] = 6
                options = {"exif": exif}
            modes = {"grey": "L", "cmyk": "CMYK"}
            Image.fromarray(pixels).convert(modes.get(name, "RGB")).save(path, **options)
            check = check_image(str(path))
            assert (check.height, check.width) == decode_image(str(path)).shape[:2]
            assert check.kind == ("rotated by EXIF" if name == "turned" else "")

    def test_sixteen_bits_and_palettes(self, tmp_path: Path) -> None:
        cv2.imwrite(str(tmp_path / "deep.png"), np.full((30, 40), 40000, np.uint16))
        Image.fromarray(np.zeros((30, 40, 3), np.uint8)).convert("P").save(tmp_path / "palette.png")
        for path in tmp_path.iterdir():
            assert check_image(str(path)).width == 40
            assert decode_image(str(path)).dtype == np.uint8

    def test_contents_count_and_not_the_suffix(self, tmp_path: Path) -> None:
        path = tmp_path / "really_a_jpeg.png"
        path.write_bytes(encoded(".jpg", (400, 320)))
        assert decode_image(str(path), 4).shape == (80, 100, 3)
        assert check_image(str(path)).width == 400

    @pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif"])
    def test_decoding_bytes_gives_what_opencv_reads_from_a_file(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"a{suffix}"
        path.write_bytes(encoded(suffix, (333, 222)))
        np.testing.assert_array_equal(decode_bytes(path.read_bytes()), cv2.imread(str(path), cv2.IMREAD_COLOR))

    def test_an_image_that_was_replaced_is_not_taken_for_the_checked_one(self, tmp_path: Path) -> None:
        path = add(tmp_path, "a.png")
        result = index(tmp_path)
        path.write_bytes(encoded(".png", (80, 30)))
        with pytest.raises(UserError, match=r"its size is 80 x 30, but was 40 x 30"):
            DetectionDataset(result, 64, None)[0]


@pytest.mark.skipif(sys.platform != "linux", reason="file names are any bytes on Linux only")
class TestNames:
    def test_names_that_are_no_utf8(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for split in ("train", "val"):
            add(tmp_path, f"{split}/{NOT_UTF8}.png")
            add(tmp_path, f"{split}/{NOT_UTF8}.jpg", rows=None, content=b"broken")
        for cache in (True, True, False):  # written, read, and without
            result = index(tmp_path, cache=cache)
            assert result.counts["boxes"] == 2 and names(result) == [f"{NOT_UTF8}.png"] * 2
        for config in (None, AugmentConfig()):
            for kind in (None, "ram", "disk"):
                assert DetectionDataset(result, 64, config, cache=kind)[0].path.endswith(f"{NOT_UTF8}.png")
        (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [a, b]")
        audit(["--data", str(tmp_path / "data.yaml")])
        assert "b?r.jpg: OpenCV cannot decode it" in capsys.readouterr().out.encode("utf-8").decode()

    def test_a_list_of_such_names(self, tmp_path: Path) -> None:
        path = add(tmp_path, f"{NOT_UTF8}.png")
        (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf./images/b\xe4r.png\r\n")
        assert find_images([tmp_path / "list.txt"]) == ([str(path)], [])

    def test_control_characters_do_not_reach_the_terminal(self, tmp_path: Path) -> None:
        add(tmp_path, "good.png")
        add(tmp_path, "\x1b[2Jx\n.png", content=b"broken", rows=None)
        assert index(tmp_path, quiet=True).summary().replace("\n  ", "").isprintable()


class TestNoFiles:
    """None of these is waited for, and each is named."""

    @pytest.fixture(params=["fifo", "socket", "device", "gone", "itself", "folder"])
    def make(self, request: pytest.FixtureRequest) -> Callable[[Path], None]:
        def make(path: Path) -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            if request.param == "fifo":
                os.mkfifo(path)
            elif request.param == "socket":
                here = os.getcwd()
                os.chdir(path.parent)  # a socket's path is at most 107 bytes
                try:
                    socket.socket(socket.AF_UNIX).bind(path.name)
                finally:
                    os.chdir(here)
            elif request.param == "folder":
                path.mkdir()
            else:
                path.symlink_to({"device": "/dev/zero", "gone": "/no/where.png", "itself": path.name}[request.param])

        make.__name__ = request.param
        return make

    def test_as_image(self, tmp_path: Path, make: Callable[[Path], None]) -> None:
        add(tmp_path, "good.png")
        make(tmp_path / "images" / "odd.png")
        result = index(tmp_path)
        assert names(result) == ["good.png"]
        kinds = list(result.problem_counts())
        lost = make.__name__ in ("gone", "itself")
        assert kinds == ([] if make.__name__ == "folder" else ["missing image" if lost else "not a file"])
        unlabelled = index(tmp_path, labels=False)
        assert names(unlabelled) == ["good.png"]

    def test_as_listed_image(self, tmp_path: Path, make: Callable[[Path], None]) -> None:
        add(tmp_path, "good.png")
        make(tmp_path / "images" / "odd.png")
        (tmp_path / "list.txt").write_text("./images/good.png\n./images/odd.png\n")
        found, problems = find_images([tmp_path / "list.txt"])
        assert [Path(path).name for path in found] == ["good.png"] and len(problems) == 1

    def test_as_label_file(self, tmp_path: Path, make: Callable[[Path], None]) -> None:
        add(tmp_path, "good.png")
        add(tmp_path, "odd.png", rows=None)
        make(tmp_path / "labels" / "odd.txt")
        for _ in range(2):  # the second time from the cache
            result = index(tmp_path)
            if make.__name__ == "gone":
                assert names(result) == ["good.png", "odd.png"]  # a background, as without a label file
            else:
                assert names(result) == ["good.png"]
                assert list(result.problem_counts()) == ["unreadable label file"]
        assert names(index(tmp_path, labels=False)) == ["good.png", "odd.png"]

    def test_as_list(self, tmp_path: Path, make: Callable[[Path], None]) -> None:
        make(tmp_path / "list.txt")
        with pytest.raises(UserError, match=r"list\.txt.* (cannot be read|do not exist)|no images"):
            build_index([tmp_path / "list.txt"], 3)

    def test_as_caches(self, tmp_path: Path, make: Callable[[Path], None]) -> None:
        add(tmp_path, "a.png")
        make(tmp_path / "labels.index.cache")
        result = index(tmp_path)
        make(tmp_path / "images.pixels" / "a.png.by1.npy")
        assert ImageReader(result.records, 64, cache="disk").read(0).shape == (30, 40, 3)


class TestLinks:
    def test_links_that_lead_back(self, tmp_path: Path) -> None:
        for name in ("train/a.png", "train/deep/b.png", "val/c.png"):
            add(tmp_path, name)
        train, val = tmp_path / "images/train", tmp_path / "images/val"
        (train / "self").symlink_to(".")
        (train / "deep/up").symlink_to("..")
        result = build_index([train], 3)
        assert names(result) == ["a.png", "b.png"] and result.counts["boxes"] == 2 and not result.problems
        (train / "0").symlink_to("../val")
        (val / "t").symlink_to("../train")
        for folder in (train, val):
            assert sorted(names(build_index([folder], 3, cache=False))) == ["a.png", "b.png", "c.png"]
        assert len(build_index([train, val], 3, cache=False)) == 3

    def test_a_folder_is_preferred_to_a_link_to_it(self, tmp_path: Path) -> None:
        add(tmp_path, "real/a.png")
        (tmp_path / "images/0").symlink_to("real")
        assert index(tmp_path).counts["boxes"] == 1

    def test_labels_beyond_a_link_are_named(self, tmp_path: Path) -> None:
        add(tmp_path, "train/a.png")
        add(tmp_path, "val/c.png")
        (tmp_path / "images/train/v").symlink_to("../val")
        (problem,) = build_index([tmp_path / "images/train"], 3).problems
        assert problem.kind == "labels beyond a link" and "labels/val/c.txt" in problem.detail

    def test_labels_may_be_linked_too(self, tmp_path: Path) -> None:
        add(tmp_path, "train/a.png")
        (tmp_path / "labels/train/self").symlink_to(".")
        assert not build_index([tmp_path / "images/train"], 3).problems

    def test_a_folder_that_is_closed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        add(tmp_path, "a.png")
        add(tmp_path, "closed/b.png")
        scan = os.scandir

        def refuse(path: str) -> Any:  # the rights of a folder do not bind root
            if str(path).endswith("images/closed"):
                raise PermissionError(13, "Permission denied", path)
            return scan(path)

        monkeypatch.setattr(os, "scandir", refuse)
        (problem, _) = index(tmp_path).problems
        assert problem.kind == "unreadable folder" and problem.path.endswith("images/closed")


class TestLabels:
    def test_images_that_share_a_label_file(self, tmp_path: Path) -> None:
        add(tmp_path, "a.png")
        add(tmp_path, "a.jpg")
        add(tmp_path, "b.png", rows=None)
        add(tmp_path, "b.jpg", rows=None)
        (problem,) = index(tmp_path).problems
        assert problem.kind == "label file of several images" and problem.path.endswith("labels/a.txt")
        assert "a.jpg" in problem.detail and "a.png" in problem.detail

    @pytest.mark.parametrize(
        ("content", "kind"),
        [
            (b"".join(b"0 %.6f 0.5 0.1 0.1\n" % (0.1 + i / 50000) for i in range(MAX_ROWS + 1)), "too many labels"),
            (b"\0\1\2\3" * 100, "label file is no text"),
            (b"0 0.5 0.5 0.1 0.1\n" * (MAX_LABEL_BYTES // 18 + 1), "unreadable label file"),
        ],
        ids=["rows", "zero bytes", "length"],
    )
    def test_an_image_with_unusable_labels_is_left_out(self, tmp_path: Path, content: bytes, kind: str) -> None:
        add(tmp_path, "good.png")
        add(tmp_path, "odd.png", content)
        for _ in range(2):
            result = index(tmp_path)
            assert names(result) == ["good.png"] and result.counts["dropped"] == 1
            (problem,) = result.problems
            assert problem.kind == kind and problem.path.endswith("labels/odd.txt") and problem.line is None

    def test_crowds_are_taken(self) -> None:
        content = b"".join(b"0 %.6f 0.5 0.1 0.1\n" % (0.1 + i / 50000) for i in range(MAX_ROWS))
        assert len(parse_labels(content).labels) == MAX_ROWS

    def test_utf16_with_its_mark(self) -> None:
        assert parse_labels("0 .5 .5 .1 .1\r\n1 .5 .5 .1 .1".encode("utf-16")).labels[:, 0].tolist() == [0, 1]

    @pytest.mark.parametrize(
        ("row", "kind"),
        [
            ("1e300 .5 .5 .1 .1", "class out of range"),
            ("99999999999 .5 .5 .1 .1", "class out of range"),
            ("0 .5 .5 1e-320 .1", "zero-size box"),
            ("0 .5 .5 inf .1", "not a number"),
            ("0 .5 .5 .1 1_0", "not a number"),
            ("0 .5 .5 .1 \x1b[2J" + "x" * 5000, "not a number"),
            ("0 " + "0.5 " * 100_000, "wrong column count"),
        ],
    )
    def test_values_that_would_do_harm(self, row: str, kind: str) -> None:
        parsed = parse_labels(f"{row}\n{ROWS}".encode())
        ((line, found, detail),) = parsed.issues
        assert (line, found) == (1, kind) and detail.isprintable() and len(detail) < 200
        assert len(parsed.labels) == 1 and np.isfinite(parsed.labels).all()

    def test_many_bad_rows_are_counted(self) -> None:
        parsed = parse_labels(b"x\n" * (MAX_ISSUES + 5) + ROWS.encode())
        assert len(parsed.labels) == 1 and len(parsed.issues) == MAX_ISSUES + 1
        assert parsed.issues[-1][1:] == ("more bad rows", "5 rows up to this one, left out or clipped")

    def test_any_bytes(self) -> None:
        rng = random.Random(0)
        good = b"0 0.5 0.5 0.1 0.1\n1 0.2 0.2 0.8 0.3 0.5 0.9\n"
        for _ in range(2000):
            content = bytearray(good)
            for _ in range(rng.randrange(4)):
                place = rng.randrange(len(content) + 1)
                content[place : place + rng.randrange(3)] = rng.choice(
                    (rng.randbytes(3), b"-", b"e999", b"nan ", b" 1", b"\n", b"\xff\xfe", b"9" * 30, b"\x85")
                )
            parsed = parse_labels(bytes(content))
            assert np.isfinite(parsed.labels).all() and len(parsed.labels) == len(parsed.lines)
            assert parsed.labels[:, 1:].min(initial=0) >= 0 and parsed.labels[:, 3:].min(initial=1) > 0
            assert all(kind not in LABEL_FAULTS or not len(parsed.labels) for _, kind, _ in parsed.issues)

    @pytest.mark.parametrize("unit", [b"1 ", b"x\n", b"\n", b"0 .5 .5 .1 .1\n", b"\xff"])
    def test_memory_is_bounded(self, unit: bytes) -> None:
        content = unit * ((MAX_LABEL_BYTES >> 7) // len(unit))
        tracemalloc.start()
        parse_labels(content)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 30 >> 7


class TestCaches:
    @pytest.fixture
    def cached(self, tmp_path: Path) -> Path:
        add(tmp_path, "a.png", ROWS + "1 0 0 0.5 0 0.5 0.5\n7 0.5 0.5 0.1 0.1\nx")
        add(tmp_path, "b.png", rows=None)
        index(tmp_path)
        return tmp_path / "labels.index.cache"

    def read(self, cached: Path) -> int:
        return len(read_cache([cached.with_name("images")], 2))

    def changed(self, cached: Path, **arrays: np.ndarray) -> int:
        with np.load(cached) as known:
            arrays = {**known, **arrays}
        with open(cached, "wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
        return self.read(cached)

    def test_unchanged(self, cached: Path) -> None:
        assert self.read(cached) == self.changed(cached) == 2

    @pytest.mark.parametrize(
        ("name", "change"),
        [
            ("labels", lambda a: a * np.nan),
            ("labels", lambda a: a + 0.5),
            ("labels", lambda a: a * 0),
            ("labels", lambda a: a[:, :3]),
            ("labels", lambda a: a.astype("U5")),
            ("labels", lambda a: a.astype(np.float64)),
            ("labels", lambda a: np.asfortranarray(a)),
            ("labels", lambda a: a[:2]),
            ("sizes", lambda a: a * 0),
            ("sizes", lambda a: a - 35),
            ("sizes", lambda a: -a),
            ("sizes", lambda a: a << 20),
            ("stamps", lambda a: a[:1]),
            ("digests", lambda a: a[:, :8]),
            ("num_labels", lambda a: a - 1),
            ("num_labels", lambda a: a + (1 << 62)),
            ("num_segments", lambda a: a - 3),
            ("num_points", lambda a: a * 0),
            ("points", lambda a: a * np.inf),
            ("lines", lambda a: a * 0),
        ],
    )
    def test_arrays_that_cannot_be(self, cached: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
        with np.load(cached) as arrays, np.errstate(all="ignore"):
            array = change(arrays[name])
        assert self.changed(cached, **{name: array}) == 0
        assert index(cached.parent).counts["images"] == 2

    @pytest.mark.parametrize(
        "change",
        [
            {"issues": [1]}, {"issues": {"0": [[1, 2, 3]]}}, {"issues": {"9": [[0, "a", "b"]]}}, {"issues": {"x": []}},
            {"issues": {"0": [[0, "a", "b" * 10000]]}}, {"paths": "ab"}, {"paths": ["a", "a"]}, {"paths": [1, 2]},
            {"paths": ["a"]}, {"version": 1}, {"version": {}}, {"opencv": "3.0"},
        ],
        ids=str,
    )  # fmt: skip
    def test_headers_that_cannot_be(self, cached: Path, change: dict[str, Any]) -> None:
        with np.load(cached) as arrays:
            header = json.loads(arrays["header"].tobytes())
        text = json.dumps({**header, **change}).encode()
        assert self.changed(cached, header=np.frombuffer(text, np.uint8)) == 0

    def test_deep_header(self, cached: Path) -> None:
        assert self.changed(cached, header=np.frombuffer(b"[" * 200_000, np.uint8)) == 0

    @pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
    def test_compressed(self, cached: Path, method: int) -> None:
        with zipfile.ZipFile(cached) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(cached, "w", method) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        assert self.read(cached) == 0

    def test_an_array_that_says_to_be_larger_than_the_file(self, cached: Path) -> None:
        header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({1 << 40},), }}"
        with zipfile.ZipFile(cached, "w") as archive:
            archive.writestr(
                "header.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + header.ljust(117).encode() + b"\n"
            )
        tracemalloc.start()
        assert self.read(cached) == 0
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
        tracemalloc.stop()

    def test_a_file_without_end(self, cached: Path) -> None:
        os.truncate(cached, 1 << 40)
        assert self.read(cached) == 0

    def test_any_change_of_the_bytes(self, cached: Path) -> None:
        rng = random.Random(0)
        original = cached.read_bytes()
        for _ in range(400):
            content = bytearray(original)
            for _ in range(rng.randrange(1, 4)):
                place = rng.randrange(len(content))
                content[place : place + rng.choice((1, 4))] = rng.randbytes(rng.choice((0, 1, 4)))
            cached.write_bytes(content)
            assert self.read(cached) in (0, 2)

    @pytest.mark.parametrize("exact", [False, True])
    @pytest.mark.parametrize("change", ["shape", "type", "huge", "object", "length", "empty"])
    def test_pixels_that_cannot_be(self, tmp_path: Path, change: str, exact: bool) -> None:
        path = add(tmp_path, "a.png")
        result = index(tmp_path)
        expected = ImageReader(result.records, 20, exact=exact, cache="disk").read(0)
        (file,) = (tmp_path / "images.pixels").iterdir()
        arrays = {
            "shape": expected.transpose(1, 0, 2),
            "type": expected.astype(np.float32),
            "object": np.array([{}], object),
        }
        content = file.read_bytes()
        if change in arrays:
            np.save(file, np.ascontiguousarray(arrays[change]), allow_pickle=True)
        else:
            huge = content.replace(b"(15,", b"(1%s," % (b"0" * 12)).replace(b"(30,", b"(1%s," % (b"0" * 12))
            file.write_bytes({"huge": huge, "length": content[:-1], "empty": b""}[change])
        os.utime(file, ns=(path.stat().st_mtime_ns,) * 2)
        again = ImageReader(result.records, 20, exact=exact, cache="disk").read(0)
        np.testing.assert_array_equal(again, expected)

    def test_an_older_image_in_the_place_of_a_newer_one_is_noticed(self, tmp_path: Path) -> None:
        """As `cp -p`, `tar` and `rsync -t` put it there."""
        path = add(tmp_path, "a.png")
        result = index(tmp_path)
        ImageReader(result.records, 64, cache="disk").read(0)
        path.write_bytes(encoded(".png", seed=99))
        os.utime(path, (10**9, 10**9))
        expected = decode_image(str(path))
        np.testing.assert_array_equal(ImageReader(result.records, 64, cache="disk").read(0), expected)


class TestBrokenLater:
    @pytest.mark.parametrize("kind", [None, "ram", "disk"])
    def test_training_goes_on_and_evaluation_says_why(self, tmp_path: Path, kind: str | None) -> None:
        for name in ("a.png", "b.png"):
            add(tmp_path, name)
        result = index(tmp_path)
        (tmp_path / "images/a.png").write_bytes(b"broken")
        assert DetectionDataset(result, 64, AugmentConfig(), cache=kind)[0].path.endswith("b.png")
        with pytest.raises(
            UserError, match=r"a\.png' cannot be read: OpenCV cannot decode it; restore it, or start again"
        ):
            DetectionDataset(result, 64, None, cache=kind)[0]
        assert names(index(tmp_path)) == ["b.png"]


def test_the_audit_goes_on_without_a_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(tmp_path, "val/a.png")
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [a, b]")
    audit(["--data", str(tmp_path / "data.yaml")])
    text = capsys.readouterr().out
    assert "images/train' do not exist" in text and "val                1" in text
    (tmp_path / "data.yaml").write_text("train: images/x\nval: images/y\nnames: [a, b]")
    with pytest.raises(UserError, match="none of its images exist"):
        audit(["--data", str(tmp_path / "data.yaml")])
