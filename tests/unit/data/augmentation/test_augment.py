from __future__ import annotations

import cv2
import numpy as np
import pytest

from data.augmentation.augment import AugmentConfig, Scene, adjust_hsv, flip, labelled_scene, mixup
from data.augmentation.geometry import (
    is_upright,
    polygon_bounds,
    project_boxes,
    random_transform,
    scaling,
    translation,
    worth_keeping,
)
from data.augmentation.mosaic import GREY, Layout, Tile, mosaic4_layout, mosaic9_layout, paint, single_layout
from data.augmentation.paste import Cutout, copy_paste, cut_out, paste_in, share_covered
from data.records import ImageRecord
from utils.errors import UserError

STILL = {"degrees": 0.0, "translate": 0.0, "scale": 0.0, "shear": 0.0, "perspective": 0.0}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def scene(boxes: list[list[float]], hw: tuple[int, int] = (40, 100)) -> Scene:
    image = rng().integers(0, 256, (*hw, 3), dtype=np.uint8)
    return Scene(image, np.arange(len(boxes), dtype=np.float32), np.array(boxes, float).reshape(-1, 4))


class TestConfig:
    def test_default_changes_nothing(self) -> None:
        assert AugmentConfig().mosaic == 0 and AugmentConfig().scale == 0

    @pytest.mark.parametrize(
        "options, words",
        [
            ({"fliplr": 1.5}, "fliplr: 1.5 is not in 0 .. 1"),
            ({"hsv_h": -0.1}, "hsv_h: -0.1"),
            ({"perspective": 0.01}, "perspective: 0.01 is not in 0 .. 0.001"),
            ({"scale": 1.0}, "shrink images to nothing"),
            ({"mixup_alpha": 0.0}, "mixup_alpha"),
        ],
    )
    def test_out_of_range(self, options: dict[str, float], words: str) -> None:
        with pytest.raises(UserError, match=words):
            AugmentConfig(**options)


class TestTransform:
    def test_still_crops_the_centre(self) -> None:
        # canvas 200 x 200, output 100 x 100: the centre (100, 100) goes to (50, 50), no zoom
        matrix = random_transform(rng(), (200, 200), (100, 100), **STILL)
        np.testing.assert_allclose(matrix, translation(-50, -50), atol=1e-12)
        assert is_upright(matrix)

    def test_ranges(self) -> None:
        options = STILL | {"translate": 0.1, "scale": 0.5}
        matrices = np.stack([random_transform(rng(s), (200, 200), (100, 100), **options) for s in range(2000)])
        zoom = matrices[:, 0, 0]
        centre = matrices[:, :2, :2] @ [100, 100] + matrices[:, :2, 2]
        assert 0.5 <= zoom.min() < 0.51 and 1.49 < zoom.max() <= 1.5 and zoom.mean() == pytest.approx(1, abs=0.02)
        assert 40 <= centre.min() < 40.1 and 59.9 < centre.max() <= 60

    def test_rotation_keeps_lengths(self) -> None:
        matrix = random_transform(rng(3), (50, 50), (50, 50), **STILL | {"degrees": 45.0})
        assert not is_upright(matrix)
        np.testing.assert_allclose(matrix[:2, :2] @ matrix[:2, :2].T, np.eye(2), atol=1e-12)

    def test_projected_box_by_hand(self) -> None:
        quarter_turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # (x, y) -> (-y, x)
        boxes = project_boxes(np.array([[1.0, 2, 4, 8]]), quarter_turn[None])
        np.testing.assert_allclose(boxes, [[-8, 1, -2, 4]])

    def test_perspective_by_hand(self) -> None:
        # (10, 0) has depth 1 + 0.1 * 10 = 2 and lands at (5, 0)
        matrix = np.array([[1.0, 0, 0], [0, 1, 0], [0.1, 0, 1]])
        np.testing.assert_allclose(project_boxes(np.array([[0.0, 0, 10, 4]]), matrix[None]), [[0, 0, 5, 4]])

    def test_box_behind_the_camera_is_empty(self) -> None:
        matrix = np.array([[1.0, 0, 0], [0, 1, 0], [-0.2, 0, 1]])  # depth at x = 10 is -1
        np.testing.assert_array_equal(project_boxes(np.array([[0.0, 0, 10, 4]]), matrix[None]), 0)


class TestWorthKeeping:
    def test_rules(self) -> None:
        sides = np.array([[2, 50], [3, 50], [10, 10], [10, 10.1], [3, 301], [3, 299]])
        boxes = np.concatenate([np.zeros((6, 2)), sides], axis=1)
        areas = np.array([100, 150, 1000, 1000, 903, 897.0])
        # too thin; fine; share 0.1 is not above 0.1; 0.101 is; aspect 100.3; aspect 99.7
        assert worth_keeping(areas, boxes).tolist() == [False, True, False, True, False, True]
        assert worth_keeping(areas, boxes, 0.01).tolist() == [False, True, True, True, False, True]


class TestPolygonBounds:
    def test_against_sampled_interior(self) -> None:
        random = rng(5)
        polygons = [random.uniform(-30, 130, (k, 2)) for k in (3, 4, 5, 7, 3, 6, 4, 3, 8, 5)]
        bounds = polygon_bounds(polygons, 100, 80)
        ys, xs = np.mgrid[0:80:0.5, 0:100:0.5]
        for polygon, box in zip(polygons, bounds, strict=True):
            mask = np.zeros((160, 200), np.uint8)
            cv2.fillPoly(mask, [np.round(polygon * 2 * 256 - 128).astype(np.int32)], 1, shift=8)
            if not mask.any():
                continue
            inside = [xs[mask > 0].min(), ys[mask > 0].min(), xs[mask > 0].max() + 0.5, ys[mask > 0].max() + 0.5]
            np.testing.assert_allclose(box, inside, atol=1.6)

    def test_by_hand(self) -> None:
        triangle = np.array([[5.0, -10], [15, 10], [-5, 10]])  # at y = 0: x from 0 to 10; at y = 10: -5 to 15
        around = np.array([[-9.0, -9], [99, -9], [99, 99], [-9, 99]])
        outside = around + 200
        bounds = polygon_bounds([triangle, around, outside], 12, 8)
        # at y = 8 the triangle spans -4 .. 14, so the picture's 0 .. 12 limits it
        np.testing.assert_allclose(bounds, [[0, 0, 12, 8], [0, 0, 12, 8], [0, 0, 0, 0]])

    def test_none(self) -> None:
        assert polygon_bounds([], 10, 10).shape == (0, 4)


class TestLayouts:
    sizes = ((640, 480), (480, 640), (100, 100), (300, 200), (64, 640), (640, 64), (10, 7), (33, 57), (200, 200))

    def test_mosaic4_meets_at_a_centre(self) -> None:
        centres = []
        for seed in range(300):
            layout = mosaic4_layout(rng(seed), range(4), self.sizes[:4], 100)
            a, b, c, d = layout.tiles
            centre = (d.x, d.y)
            assert (a.x + a.width, a.y + a.height) == pytest.approx(centre)
            assert (b.x, b.y + b.height) == pytest.approx(centre)
            assert (c.x + c.width, c.y) == pytest.approx(centre)
            assert [max(tile.width, tile.height) for tile in layout.tiles] == pytest.approx([100] * 4)
            centres.append(centre)
        assert 50 <= np.min(centres) < 53 and 147 < np.max(centres) <= 150
        assert (layout.width, layout.height) == (200, 200)

    def test_mosaic9_tiles_touch_and_do_not_overlap(self) -> None:
        layout = mosaic9_layout(rng(1), range(9), self.sizes, 100)
        t = layout.tiles
        assert -0.001 <= t[0].x <= 100.001 and -0.001 <= t[0].y <= 100.001
        assert t[1].y + t[1].height == pytest.approx(t[0].y) and t[1].x == t[0].x
        assert t[2].x == pytest.approx(t[1].x + t[1].width)
        assert (t[3].x, t[3].y) == pytest.approx((t[0].x + t[0].width, t[0].y))
        assert t[4].y == pytest.approx(t[3].y + t[3].height)
        assert (t[5].x + t[5].width, t[5].y) == pytest.approx((t[3].x, t[0].y + t[0].height))
        assert t[6].x + t[6].width == pytest.approx(t[5].x)
        assert (t[7].x + t[7].width, t[7].y + t[7].height) == pytest.approx((t[0].x, t[5].y))
        assert t[8].y + t[8].height == pytest.approx(t[7].y)
        for i, a in enumerate(t):
            for b in t[:i]:
                overlap_x = min(a.x + a.width, b.x + b.width) - max(a.x, b.x)
                overlap_y = min(a.y + a.height, b.y + b.height) - max(a.y, b.y)
                assert min(overlap_x, overlap_y) < 1e-6, (a.index, b.index)

    def test_single_is_centred(self) -> None:
        (tile,) = single_layout(7, (200, 100), (64, 64)).tiles
        assert tile == Tile(7, 0, 16, 64, 32)


class TestPaint:
    def test_identity_keeps_pixels(self) -> None:
        image = rng().integers(0, 256, (30, 50, 3), dtype=np.uint8)
        layout = Layout((Tile(0, 5, 10, 50, 30),), 60, 60)
        canvas, (placement,) = paint(layout, np.eye(3), (60, 60), lambda _: image)
        np.testing.assert_array_equal(canvas[10:40, 5:55], image)
        canvas[10:40, 5:55] = GREY
        assert (canvas == GREY).all()
        np.testing.assert_allclose(placement.matrix, translation(5, 10) @ scaling(50, 30), atol=1e-9)
        assert placement.visible == (0, 0, 1, 1) and placement.area == pytest.approx(1500)

    def test_the_canvas_cuts_off(self) -> None:
        image = np.zeros((40, 40, 3), np.uint8)
        layout = Layout((Tile(0, -10, 0, 40, 40),), 20, 20)
        canvas, (placement,) = paint(layout, translation(5, 5), (40, 40), lambda _: image)
        assert placement.visible == (0.25, 0, 0.75, 0.5)
        expected = np.full((40, 40, 3), GREY, np.uint8)
        expected[5:25, 5:25] = 0
        np.testing.assert_array_equal(canvas, expected)

    def test_reads_only_what_shows(self) -> None:
        layout = mosaic4_layout(rng(2), range(4), [(100, 100)] * 4, 100)
        seen: list[int] = []

        def read(index: int) -> np.ndarray:
            seen.append(index)
            return np.zeros((100, 100, 3), np.uint8)

        zoomed_in = translation(50, 50) @ scaling(8, 8) @ translation(-10, -10)  # the upper left corner of the canvas
        _, placements = paint(layout, zoomed_in, (100, 100), read)
        assert seen == [0] and [placement.index for placement in placements] == [0]

    @pytest.mark.parametrize("turned", [False, True])
    def test_shrinking_averages(self, turned: bool) -> None:
        # Every fourth line is white: sampling every fourth pixel gives black or white, averaging 255 / 4 = 64.
        image = np.zeros((160, 160, 3), np.uint8)
        image[::4] = 255
        layout = Layout((Tile(0, 0, 0, 160, 160),), 160, 160)
        transform = scaling(0.25, 0.25)
        if turned:
            transform = transform @ np.array([[1.0, 0.01, 0], [0, 1, 0], [0, 0, 1]])
        canvas, _ = paint(layout, transform, (40, 40), lambda _: image)
        assert np.abs(canvas[2:38, 2:38].astype(int) - 64).max() <= 2

    @pytest.mark.parametrize("options", [{"degrees": 10.0}, {"shear": 9.0, "perspective": 0.0005}, {"translate": 0.1}])
    def test_no_seams(self, options: dict[str, float]) -> None:
        white = np.full((100, 100, 3), 255, np.uint8)
        layout = mosaic4_layout(rng(4), range(4), [(100, 100)] * 4, 100)
        transform = random_transform(rng(4), (200, 200), (100, 100), **STILL | options)
        canvas, placements = paint(layout, transform, (100, 100), lambda _: white)
        assert len(placements) > 1 and (canvas[10:90, 10:90] == 255).all()


class TestLabels:
    @staticmethod
    def scene_of(boxes: list[list[float]], tile: Tile, transform: np.ndarray, canvas_side: float = 100) -> Scene:
        labels = np.array([[number, *box] for number, box in enumerate(boxes)], np.float32)
        record = ImageRecord("a", 40, 40, labels)
        layout = Layout((tile,), canvas_side, canvas_side)
        image, placements = paint(layout, transform, (40, 40), lambda _: np.zeros((40, 40, 3), np.uint8))
        return labelled_scene(image, placements, [record], use_polygons=False)

    def test_by_hand(self) -> None:
        # canvas x = 10 + 40 * 0.25 .. 10 + 40 * 0.75 = 20 .. 40, y = 5 .. 15; then doubled and moved by (-20, 0)
        made = self.scene_of([[0.5, 0.25, 0.5, 0.25]], Tile(0, 10, 0, 40, 40), translation(-20, 0) @ scaling(2, 2))
        np.testing.assert_allclose(made.boxes_xyxy, [[20, 10, 40, 30]])  # of 20 .. 60, what lies in the output

    def test_the_canvas_cuts_objects_off(self) -> None:
        # The canvas shows x = 10 .. 30 of the image, at 5 .. 25 of the output. The second object ends at 8.
        boxes = [[0.5, 0.25, 1.0, 0.5], [0.1, 0.25, 0.2, 0.5]]
        made = self.scene_of(boxes, Tile(0, -10, 0, 40, 40), translation(5, 5), canvas_side=20)
        assert made.classes.tolist() == [0]
        np.testing.assert_allclose(made.boxes_xyxy, [[5, 5, 25, 25]])

    def test_too_little_left(self) -> None:
        # Objects 40 wide of which 3 and 5 pixels stay in the output: 7.5 % and 12.5 %
        for left, kept in ((37, 0), (35, 1)):
            made = self.scene_of([[0.5, 0.5, 1.0, 1.0]], Tile(0, left, 0, 40, 40), np.eye(3))
            assert len(made.classes) == kept
        # 6 and 10 pixels of 80 after doubling: the same shares
        for left, kept in ((17, 0), (15, 1)):
            made = self.scene_of([[0.5, 0.25, 1.0, 0.5]], Tile(0, left, 0, 40, 40), scaling(2, 2))
            assert len(made.classes) == kept


class TestColour:
    def test_gain_one_changes_little(self) -> None:
        image = rng().integers(0, 256, (32, 32, 3), dtype=np.uint8)
        changed = image.copy()
        adjust_hsv(changed, np.ones(3))
        error = np.abs(changed.astype(int) - image)
        assert error.max() <= 8 and error.mean() < 1  # hue and saturation are rounded to 8 bits

    def test_no_saturation_is_the_value(self) -> None:
        image = rng().integers(0, 256, (8, 8, 3), dtype=np.uint8)
        value = image.max(-1, keepdims=True)
        adjust_hsv(image, np.array([1, 0, 1.0]))
        np.testing.assert_array_equal(image, np.broadcast_to(value, image.shape))

    def test_value_by_hand(self) -> None:
        image = np.array([[[40, 40, 40], [200, 200, 200]]], np.uint8)
        adjust_hsv(image, np.array([1, 1, 1.4]))
        np.testing.assert_array_equal(image, [[[56] * 3, [255] * 3]])  # 1.4 * 200 = 280 is limited

    def test_hue_turns_green_towards_yellow(self) -> None:
        image = np.array([[[0, 255, 0]]], np.uint8)
        adjust_hsv(image, np.array([0.5, 1, 1]))  # 120 degrees to 60: yellow
        np.testing.assert_allclose(image[0, 0], [0, 255, 255], atol=6)


class TestFlipAndMixup:
    @pytest.mark.parametrize(
        "vertically, horizontally, box",
        [
            (False, False, [10, 5, 30, 15]),
            (False, True, [70, 5, 90, 15]),
            (True, False, [10, 25, 30, 35]),
            (True, True, [70, 25, 90, 35]),
        ],
    )
    def test_flip(self, vertically: bool, horizontally: bool, box: list[int]) -> None:
        before = rng().integers(0, 256, (3, 40, 100), dtype=np.uint8)
        after = before.copy()
        np.testing.assert_allclose(flip(after, np.array([[10.0, 5, 30, 15]]), vertically, horizontally), [box])
        x1, y1, x2, y2 = box
        patch = before[:, 5:15, 10:30][:, :: -1 if vertically else 1, :: -1 if horizontally else 1]
        np.testing.assert_array_equal(after[:, y1:y2, x1:x2], patch)

    def test_mixup(self) -> None:
        first, second = scene([[0, 0, 5, 5]]), scene([[1, 1, 9, 9], [2, 2, 3, 3]])
        first.image[:], second.image[:] = 200, 100
        blended = mixup(first, second, 0.25)
        assert (blended.image == 125).all()  # 0.25 * 200 + 0.75 * 100
        assert blended.classes.tolist() == [0, 0, 1] and blended.boxes_xyxy.shape == (3, 4)


class TestPaste:
    def test_share_covered(self) -> None:
        others = np.array([[0, 0, 10, 10], [5, 5, 15, 25], [50, 50, 60, 60.0]])
        # overlaps 5 x 10 of 100, 10 x 5 of 200, nothing
        np.testing.assert_allclose(share_covered(np.array([5, 0, 20, 10.0]), others), [0.5, 0.25, 0])

    def test_copy_paste_mirrors(self) -> None:
        outline = np.array([[10.0, 5], [30, 5], [30, 15], [10, 15]])
        before = scene([[10, 5, 30, 15]])
        before.polygons = [outline]
        image = before.image.copy()
        after = copy_paste(before, 1.0, rng())
        np.testing.assert_allclose(after.boxes_xyxy, [[10, 5, 30, 15], [70, 5, 90, 15]])
        np.testing.assert_array_equal(after.image[6:14, 71:89], image[6:14, 11:29][:, ::-1])
        after.image[4:17, 69:92] = image[4:17, 69:92]
        np.testing.assert_array_equal(after.image, image)  # nothing else has changed

    def test_copy_paste_hides_nothing(self) -> None:
        before = scene([[40, 5, 60, 15]])  # its mirror image is its own place
        before.polygons = [np.array([[40.0, 5], [60, 5], [60, 15], [40, 15]])]
        assert len(copy_paste(before, 1.0, rng()).classes) == 1

    def test_without_polygons(self) -> None:
        before = scene([[10, 5, 30, 15]])
        assert copy_paste(before, 1.0, rng()) is before

    def test_cut_out_and_paste_in(self) -> None:
        donor = np.zeros((40, 40, 3), np.uint8)
        donor[10:30, 5:25] = 255
        (cutout,) = cut_out(donor, np.array([4.0]), [np.array([[5.0, 10], [24, 10], [24, 29], [5, 29]])])
        assert cutout.mask.shape == (20, 20) and cutout.mask.all() and (cutout.image == 255).all()
        target = Scene(np.zeros((200, 200, 3), np.uint8), np.zeros(0, np.float32), np.zeros((0, 4)))
        after = paste_in(target, [cutout], rng(1))
        (box,) = after.boxes_xyxy.astype(int)
        assert after.classes.tolist() == [4] and 10 <= box[2] - box[0] <= 30
        assert (after.image[box[1] : box[3], box[0] : box[2]] == 255).all()
        assert after.image.sum() == 255 * 3 * (box[2] - box[0]) * (box[3] - box[1])

    def test_paste_in_leaves_boxes_visible(self) -> None:
        cutout = Cutout(0, np.full((60, 60, 3), 255, np.uint8), np.ones((60, 60), np.uint8))
        target = scene([[0, 0, 50, 40], [50, 0, 100, 40]])
        target.image[:] = 0
        after = paste_in(target, [cutout] * 5, rng(2))
        for box in after.boxes_xyxy[2:]:
            assert (share_covered(box, target.boxes_xyxy) < 0.3).all()

    def test_objects_outside_their_image_are_ignored(self) -> None:
        outline = np.array([[39.0, 39], [60, 39], [60, 60], [39, 60]])
        assert cut_out(np.zeros((40, 40, 3), np.uint8), np.zeros(1), [outline]) == []
