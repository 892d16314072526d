"""data.synthetic: the rendered data set is the same everywhere, and fit to train on."""

from __future__ import annotations

import errno
import hashlib
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest

import data.synthetic
import utils.files
from data.config import load_dataset_config
from data.labels import build_index
from data.rendering.scene import CLASS_NAMES, RandomIntegers, render_scene
from data.rendering.shapes import FIXED, OBJECTS, circle, fill_polygon
from data.synthetic import MARKER, SyntheticConfig, ensure_rendered, render_dataset
from utils.errors import UserError

SMALL = {"num_train": 3, "num_val": 2, "num_test": 0, "img_size": 64, "seed": 5}


def fill(points: list[tuple[int, int]], size: int = 6) -> np.ndarray:
    tones = np.zeros((size, size), np.uint8)
    fill_polygon(tones, np.array(points) * FIXED, 1)
    return tones


class TestRaster:
    def test_square_covers_the_samples_whose_centres_are_inside(self) -> None:
        expected = np.zeros((6, 6), np.uint8)
        expected[1:3, 2:5] = 1
        np.testing.assert_array_equal(fill([(2, 1), (5, 1), (5, 3), (2, 3)]), expected)

    def test_triangle(self) -> None:
        # below the diagonal: sample (row r, column c) has its centre at (c + .5, r + .5), inside where c < r; on the
        # edge itself, c = r, it is outside on this side and inside on the other
        lower, upper = fill([(0, 0), (6, 6), (0, 6)]), fill([(0, 0), (6, 0), (6, 6)])
        np.testing.assert_array_equal(lower + upper, 1)  # what two polygons share belongs to one of them
        np.testing.assert_array_equal(lower, np.tril(np.ones((6, 6)), -1))

    def test_reaching_outside_is_cut(self) -> None:
        np.testing.assert_array_equal(fill([(-5, -5), (20, -5), (20, 20), (-5, 20)]), 1)
        np.testing.assert_array_equal(fill([(-5, -5), (-1, -5), (-1, -1), (-5, -1)]), 0)

    def test_area_of_a_circle(self) -> None:
        tones = np.zeros((210, 210), np.uint8)
        fill_polygon(tones, (np.array(circle(1000, corners=64)) * FIXED // 10) + 105 * FIXED, 1)
        # 64-gon of radius 100: 64 / 2 sin(2 pi / 64) 100^2 = 31365
        assert abs(int(tones.sum()) - 31365) < 60

    def test_shapes_stay_within_their_unit(self) -> None:
        for name, build in OBJECTS.items():
            points = np.array([point for _, polygon in build() for point in polygon])
            assert 900 < np.abs(points).max() <= 1100, name
            assert np.hypot(*points.T).max() < 1250, name  # data.rendering.scene leaves 5/4 of the radius


class TestScene:
    def test_pixels_of_a_seed_are_known(self) -> None:
        """The digests change only when the renderer does; RENDERER_VERSION must then be raised."""
        digests = []
        for index in range(3):
            image, boxes = render_scene(96, RandomIntegers(0, 0, index))
            digests.append(hashlib.sha256(image.tobytes() + repr(boxes).encode()).hexdigest()[:16])
        assert digests == ["0d43c76abb5d9525", "708b8f99c144d327", "ffce9a197c5fa14c"]

    def test_random_integers(self) -> None:
        draws = [RandomIntegers(1, 2, 3).below(10) for _ in range(2)]
        assert draws[0] == draws[1]
        random = RandomIntegers(1, 2, 3)
        many = [random.between(-2, 2) for _ in range(2000)]
        assert sorted(set(many)) == [-2, -1, 0, 1, 2]
        assert abs(np.mean(many)) < 0.15
        streams = [RandomIntegers(*key).bytes(16).tobytes() for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]
        assert all(a != b for a, b in combinations(streams, 2))

    @pytest.mark.parametrize("size", [64, 192])
    def test_boxes_are_within_the_image_and_of_many_sizes(self, size: int) -> None:
        sides, classes = [], set()
        for index in range(60):
            image, boxes = render_scene(size, RandomIntegers(7, 0, index))
            assert image.shape == (size, size, 3) and image.dtype == np.uint8
            for class_id, (x1, y1, x2, y2) in boxes:
                assert 0 <= x1 < x2 <= size and 0 <= y1 < y2 <= size
                assert min(x2 - x1, y2 - y1) >= 4
                sides.append(max(x2 - x1, y2 - y1))
                classes.add(class_id)
        assert classes == set(range(len(CLASS_NAMES)))
        assert min(sides) < 14 and max(sides) > 0.4 * size and len(sides) > 120

    def test_box_is_where_the_object_is(self) -> None:
        """Inside a box the picture differs from its surroundings more than two pieces of ground do."""
        inside, outside = [], []
        for index in range(40):
            image, boxes = render_scene(192, RandomIntegers(3, 0, index))
            for _, (x1, y1, x2, y2) in boxes:
                if x1 < 8 or x2 > 184 or y2 - y1 < 16:
                    continue
                strips = [
                    image[y1:y2, a:b].mean(axis=(0, 1)) for a, b in ((x1 - 8, x1 - 5), (x1 - 4, x1 - 1), (x1, x2))
                ]
                outside.append(np.abs(strips[1] - strips[0]).sum())
                inside.append(np.abs(strips[2] - strips[1]).sum())
        assert np.mean(inside) > 3 * np.mean(outside)


class TestDataset:
    def test_files_are_the_same_again(self, tmp_path: Path) -> None:
        paths = [render_dataset(tmp_path / name, **SMALL) for name in ("one", "two")]
        first = tmp_path / "one"
        files = sorted(str(path.relative_to(first)) for path in first.rglob("*") if path.is_file())
        assert len(files) == 12  # 5 images, 5 label files, data.yaml, marker
        for name in files:
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
        assert paths[0] == tmp_path / "one/data.yaml"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]

    def test_labels_pass_the_checks(self, tmp_path: Path) -> None:
        config = load_dataset_config(render_dataset(tmp_path / "set", **SMALL))
        assert config.names == CLASS_NAMES and config.test == ()
        index = build_index(config.train, config.nc, cache=False)
        assert index.problems == [] and len(index) == 3
        image, boxes = render_scene(64, RandomIntegers(5, 0, 0))
        record = index.records[0]
        np.testing.assert_array_equal(cv2.imread(record.path), image)
        corners = np.array([box for _, box in boxes]).reshape(-1, 2, 2) / 64
        expected = np.column_stack([[c for c, _ in boxes], corners.mean(axis=1), corners[:, 1] - corners[:, 0]])
        np.testing.assert_allclose(record.labels, expected, atol=1e-6)

    def test_splits_and_seeds_differ(self, tmp_path: Path) -> None:
        render_dataset(tmp_path / "a", **SMALL)
        render_dataset(tmp_path / "b", **(SMALL | {"seed": 6}))
        paths = ("a/images/train", "a/images/val", "b/images/train")
        assert len({(tmp_path / path / "000000.png").read_bytes() for path in paths}) == 3

    def test_rendered_once(self, tmp_path: Path) -> None:
        root = tmp_path / "set"
        ensure_rendered(root, SMALL, "data.yaml")
        times = {path: path.stat().st_mtime_ns for path in root.rglob("*.png")}
        ensure_rendered(root, SMALL, "data.yaml")
        assert {path: path.stat().st_mtime_ns for path in root.rglob("*.png")} == times
        ensure_rendered(root, SMALL | {"num_val": 1}, "data.yaml")  # other parameters: rendered anew
        assert len(list(root.rglob("*.png"))) == 4

    def test_another_process_was_faster(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        root = tmp_path / "set"
        render = data.synthetic._render_into

        def race(partial: Path, config: SyntheticConfig) -> None:
            render(partial, config)
            if not root.exists():  # the other process, from begin to end
                render(root, config)
                (root / "in use").touch()

        monkeypatch.setattr(data.synthetic, "_render_into", race)
        render_dataset(root, **SMALL)
        assert (root / "in use").exists()
        assert [path.name for path in tmp_path.iterdir()] == ["set"]

    def test_interrupted_rendering_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(path: Path, mode: str) -> None:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

        monkeypatch.setattr(utils.files, "replacing", fail)
        with pytest.raises(OSError, match=r"No space left on device: .*\.png"):
            render_dataset(tmp_path / "set", **SMALL)
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_of_others_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "mine.txt").write_text("precious")
        with pytest.raises(UserError, match="holds other files; choose a new folder"):
            ensure_rendered(tmp_path, SMALL, "data.yaml")
        assert (tmp_path / "mine.txt").exists() and not (tmp_path / MARKER).exists()

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"num_train": 0}, "synthetic num_train is 0, expected a whole number from 1"),
            ({"img_size": 32}, "synthetic img_size is 32, expected a whole number from 64 to 1024"),
            ({"seed": 1.5}, "synthetic seed is 1.5"),
            ({"images": 5}, "unknown key 'images'"),
        ],
    )
    def test_wrong_parameters(self, parameters: dict[str, object], message: str) -> None:
        with pytest.raises(UserError, match=message):
            SyntheticConfig.parse(parameters, "data.yaml")
