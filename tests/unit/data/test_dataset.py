from __future__ import annotations

import logging
import os
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import data.decoding.decode
from data.augmentation.augment import AugmentConfig
from data.dataset import DetectionDataset, Sample, rectangular_shapes, to_tensor
from data.decoding.decode import ImageReader, decode_image, fit_long_side, sufficient_reduction
from data.records import DatasetIndex
from data.sampling import SampleRequest
from tests.unit.data.image_toys import COLORS, SIZES_WH, color_mask, pixel_bounds, toy_index
from utils.boxes import scale_boxes
from utils.errors import UserError
from utils.logging import LOGGER

SIZE = 128
EVERYTHING = AugmentConfig(
    hsv_h=0.015, hsv_s=0.7, hsv_v=0.4, degrees=10, translate=0.1, scale=0.5, shear=5, perspective=0.0005, flipud=0.3,
    fliplr=0.5, mosaic=0.8, mosaic9=0.3, mixup=0.4, mixup_alpha=8.0, copy_paste=0.5, paste_in=0.5,
)  # fmt: skip


@pytest.fixture
def warnings_logged() -> Iterator[list[str]]:
    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler = Collector()
    LOGGER.addHandler(handler)
    yield lines
    LOGGER.removeHandler(handler)


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> DatasetIndex:
    return toy_index(tmp_path_factory.mktemp("toys"))


@pytest.fixture(scope="module")
def octagons(tmp_path_factory: pytest.TempPathFactory) -> DatasetIndex:
    return toy_index(tmp_path_factory.mktemp("octagons"), octagons=True)


def pixels(sample: Sample) -> np.ndarray:
    """(H, W, 3) RGB."""
    return sample.image.numpy().transpose(1, 2, 0)


def pixel_boxes(sample: Sample) -> np.ndarray:
    """Boxes of a sample in pixels, (n, 4) xyxy."""
    _, height, width = sample.image.shape
    cx, cy, w, h = sample.labels[:, 1:].numpy().T
    return np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], 1) * (width, height, width, height)


def same(a: Sample, b: Sample) -> bool:
    return torch.equal(a.image, b.image) and torch.equal(a.labels, b.labels) and a.path == b.path


def assert_boxes_fit(sample: Sample, tolerance: float, *, inner_only: bool = False, min_side: int = 4) -> int:
    """Checks each box against the pixels of its class in and just around it; returns how many were checked."""
    image, checked = pixels(sample), 0
    height, width = image.shape[:2]
    for class_id, box in zip(sample.labels[:, 0].int().tolist(), pixel_boxes(sample)):
        x1, y1, x2, y2 = box
        touches = x1 < 1 or y1 < 1 or x2 > width - 1 or y2 > height - 1
        if (inner_only and touches) or min(x2 - x1, y2 - y1) < min_side:
            continue
        left, top = max(int(x1) - 3, 0), max(int(y1) - 3, 0)
        mask = color_mask(image, class_id)[top : int(y2) + 4, left : int(x2) + 4]
        assert mask.any(), f"no pixel of class {class_id} in {box}"
        np.testing.assert_allclose(pixel_bounds(mask) + (left, top, left, top), box, atol=tolerance)
        checked += 1
    return checked


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fliplr": 1.0},
        {"flipud": 1.0},
        {"scale": 0.5, "translate": 0.1},
        {"mosaic": 1.0},
        {"mosaic": 1.0, "scale": 0.5, "translate": 0.1, "fliplr": 0.5, "flipud": 0.5},
        {"mosaic": 1.0, "mosaic9": 1.0},
        {"mosaic": 1.0, "mosaic9": 1.0, "scale": 0.5, "translate": 0.1},
    ],
    ids=str,
)
def test_boxes_follow_pixels_upright(toys: DatasetIndex, options: dict[str, float]) -> None:
    dataset = DetectionDataset(toys, SIZE, AugmentConfig(**options))
    checked = sum(
        assert_boxes_fit(dataset[SampleRequest(i, epoch)], 1.0) for epoch in range(6) for i in range(len(dataset))
    )
    assert checked >= 30


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
@pytest.mark.parametrize(
    "options", [{"degrees": 45.0}, {"shear": 20.0}, {"perspective": 0.001}, {"degrees": 30.0, "scale": 0.5}], ids=str
)
def test_boxes_follow_pixels_warped(octagons: DatasetIndex, mosaic: float, options: dict[str, float]) -> None:
    """With polygons boxes are tight, so that they can be compared with pixels; at the border, too.

    Slivers are left out: where the border cuts a slope, half a pixel to the side is several along the border.
    """
    dataset = DetectionDataset(octagons, SIZE, AugmentConfig(mosaic=mosaic, **options))
    requests = [SampleRequest(i, epoch) for epoch in range(6) for i in range(len(dataset))]
    checked = sum(assert_boxes_fit(dataset[request], 2.0, min_side=12) for request in requests)
    assert checked >= 20


def test_boxes_of_turned_rectangles(toys: DatasetIndex) -> None:
    """Without polygons the bounds of a turned box are exact only while it lies within the picture."""
    dataset = DetectionDataset(toys, SIZE, AugmentConfig(degrees=30, mosaic=0.0, scale=0.3))
    assert sum(assert_boxes_fit(dataset[SampleRequest(i, 3)], 1.6, inner_only=True) for i in range(6)) >= 4


def test_boxes_follow_pixels_of_reduced_jpegs(tmp_path: Path) -> None:
    index = toy_index(tmp_path, [(w * 8 + 3, h * 8 + 5) for w, h in SIZES_WH], suffix=".jpg")
    dataset = DetectionDataset(index, 64, AugmentConfig(mosaic=1.0, scale=0.5, translate=0.1))
    assert dataset.reader.read(0).shape[1] < 200  # 771 pixels wide in the file
    assert sum(assert_boxes_fit(dataset[SampleRequest(i, e)], 1.5) for e in range(4) for i in range(6)) >= 20


def test_every_object_is_labelled(toys: DatasetIndex) -> None:
    """A colour that covers many pixels has a box."""
    dataset = DetectionDataset(toys, SIZE, AugmentConfig(mosaic=1.0, scale=0.5, translate=0.1))
    for i in range(6):
        sample = dataset[SampleRequest(i, 9)]
        uncovered = pixels(sample).copy()
        for x1, y1, x2, y2 in pixel_boxes(sample):
            uncovered[max(int(y1) - 1, 0) : int(y2) + 2, max(int(x1) - 1, 0) : int(x2) + 2] = 0
        for class_id in range(len(COLORS)):
            assert color_mask(uncovered, class_id).sum() < 250  # an object has 1500 and more, and is kept above 10 %


def test_sample_form(toys: DatasetIndex) -> None:
    sample = DetectionDataset(toys, SIZE, EVERYTHING)[2]
    assert sample.image.dtype == torch.uint8 and sample.image.shape == (3, SIZE, SIZE) and sample.image.is_contiguous()
    assert sample.labels.dtype == torch.float32 and sample.labels.shape[1] == 5
    assert ((sample.labels[:, 1:] >= 0) & (sample.labels[:, 1:] <= 1)).all()
    assert sample.path == toys.records[2].path and sample.shape.original_hw == (96, 96)
    assert sample.shape.ratio_pad is None


def test_channels_are_rgb() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    image[..., 0], image[..., 2] = 10, 30  # blue, red
    assert to_tensor(image)[:, 0, 0].tolist() == [30, 0, 10]


class TestDeterminism:
    def test_follows_from_seed_epoch_index(self, octagons: DatasetIndex) -> None:
        first, second = (DetectionDataset(octagons, SIZE, EVERYTHING, seed=5) for _ in range(2))
        requests = [SampleRequest(i, epoch) for epoch in (0, 3) for i in range(6)]
        forwards = [first[request] for request in requests]
        backwards = [second[request] for request in reversed(requests)][::-1]
        assert all(same(a, b) for a, b in zip(forwards, backwards, strict=True))

    @pytest.mark.parametrize("other", [{"seed": 6}, {"epoch": 1}])
    def test_changes_with_each(self, toys: DatasetIndex, other: dict[str, int]) -> None:
        a = DetectionDataset(toys, SIZE, EVERYTHING, seed=5)
        b = DetectionDataset(toys, SIZE, EVERYTHING, seed=other.get("seed", 5))
        assert not any(same(a[SampleRequest(i, 0)], b[SampleRequest(i, other.get("epoch", 0))]) for i in range(6))

    def test_global_generators_are_left_alone(self, toys: DatasetIndex) -> None:
        torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        DetectionDataset(toys, SIZE, EVERYTHING)[0]
        assert torch.equal(torch_state, torch.get_rng_state())
        assert (numpy_state == np.random.get_state()[1]).all()  # noqa: NPY002

    def test_samples_do_not_spoil_the_remembered_image(self, toys: DatasetIndex) -> None:
        config = AugmentConfig(hsv_v=0.9, paste_in=1.0, mosaic=0.5)
        dataset = DetectionDataset(toys, SIZE, config)
        before = [dataset.reader.read(i).copy() for i in range(6)]
        for i in range(6):
            dataset[i]
        assert all((dataset.reader.read(i) == image).all() for i, image in enumerate(before))


def test_closing_the_mosaic(toys: DatasetIndex) -> None:
    dataset = DetectionDataset(toys, SIZE, AugmentConfig(mosaic=1.0, mixup=1.0, fliplr=0.5))
    for i in range(6):
        sample = dataset[SampleRequest(i, 4, mosaic=False)]
        assert sample.labels[:, 0].tolist() == [i]  # its own object alone
    assert any(len(dataset[SampleRequest(i, 4)].labels) > 1 for i in range(6))


class TestUnreadable:
    def break_image(self, index: DatasetIndex, number: int) -> None:
        Path(index.records[number].path).write_bytes(b"not an image")

    def test_training_goes_on(self, tmp_path: Path, warnings_logged: list[str]) -> None:
        index = toy_index(tmp_path)
        self.break_image(index, 2)
        Path(index.records[3].path).unlink()
        dataset = DetectionDataset(index, SIZE, AugmentConfig(mosaic=0.5))
        for epoch in range(4):
            for i in range(6):
                sample = dataset[SampleRequest(i, epoch)]
                assert not {2, 3} & set(sample.labels[:, 0].int().tolist())
        assert len(warnings_logged) == 2
        assert sorted("im02.png" in line for line in warnings_logged) == [False, True]
        assert dataset[SampleRequest(2, 0, mosaic=False)].path == index.records[4].path

    def test_result_does_not_depend_on_when_it_is_noticed(self, tmp_path: Path) -> None:
        index = toy_index(tmp_path)
        self.break_image(index, 2)
        early, late = (DetectionDataset(index, SIZE, EVERYTHING) for _ in range(2))
        early[SampleRequest(2, 0, mosaic=False)]
        assert early.unreadable and all(same(early[i], late[i]) for i in (5, 4, 3, 2, 1, 0))

    def test_nothing_left(self, tmp_path: Path) -> None:
        index = toy_index(tmp_path)
        for number in range(6):
            self.break_image(index, number)
        with pytest.raises(UserError, match="none of the 6 training images can be read"):
            DetectionDataset(index, SIZE, AugmentConfig())[0]

    def test_evaluation_stops(self, tmp_path: Path) -> None:
        index = toy_index(tmp_path)
        self.break_image(index, 2)
        with pytest.raises(UserError, match=r"im02\.png.*restore it"):
            DetectionDataset(index, SIZE, None)[2]


class TestEvaluation:
    def test_boxes_fit_and_scale_back(self, toys: DatasetIndex) -> None:
        dataset = DetectionDataset(toys, SIZE, None, rect=True, batch_size=2, pad=0.5)
        for i, record in enumerate(dataset.records):
            sample = dataset[i]
            assert sample.image.shape[1:] == dataset.batch_shapes[i // 2]
            assert assert_boxes_fit(sample, 1.0) == 1
            original_hw, ratio_pad = sample.shape
            assert original_hw == (record.height, record.width)
            back = scale_boxes(pixel_boxes(sample), tuple(sample.image.shape[1:]), original_hw, ratio_pad)
            w, h = record.width, record.height
            np.testing.assert_allclose(
                back, [[round(0.3 * w), round(0.25 * h), round(0.7 * w), round(0.75 * h)]], atol=1e-3
            )

    def test_rect_order_and_shapes(self, toys: DatasetIndex) -> None:
        dataset = DetectionDataset(toys, SIZE, None, rect=True, batch_size=2, stride=32)
        aspects = [record.height / record.width for record in dataset.records]
        assert aspects == sorted(aspects)
        # 0.5 and 0.75: 96 x 128; 0.75 and 1: square; 1.5 and 1.6: 128 x 128 / 1.5 = 85.3 -> 96
        assert dataset.batch_shapes == [(96, 128), (128, 128), (128, 96)]

    def test_pad_by_hand(self) -> None:
        # height ceil(0.5 * 640 / 32 + 0.5) * 32 = 352, width ceil(20.5) * 32 = 672
        assert rectangular_shapes(np.array([0.4, 0.5]), 2, 640, 32, 0.5) == [(352, 672)]

    def test_rect_training_has_no_mosaics(self, toys: DatasetIndex) -> None:
        config = AugmentConfig(mosaic=1.0, scale=0.3)
        dataset = DetectionDataset(toys, SIZE, config, rect=True, batch_size=2)
        for i in range(6):
            sample = dataset[i]
            assert len(sample.labels) == 1 and sample.image.shape[1:] == dataset.batch_shapes[i // 2]
            assert_boxes_fit(sample, 1.0)

    def test_background(self, toys: DatasetIndex) -> None:
        empty = [replace(record, labels=np.zeros((0, 5), np.float32)) for record in toys.records]
        for config in (None, EVERYTHING):
            assert DetectionDataset(replace(toys, records=empty), SIZE, config)[1].labels.shape == (0, 5)


class TestDecoding:
    @pytest.mark.parametrize("size, reduction", [(100, 1), (640, 1), (1279, 1), (1280, 2), (5119, 4), (9000, 8)])
    def test_sufficient_reduction(self, size: int, reduction: int) -> None:
        assert sufficient_reduction(size, size // 2, 640) == sufficient_reduction(size // 2, size, 640) == reduction

    @pytest.mark.parametrize("suffix", [".jpg", ".png"])
    @pytest.mark.parametrize("reduction", [2, 4, 8])
    def test_reduced_image_is_the_image(self, tmp_path: Path, suffix: str, reduction: int) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        image = cv2.resize(noise, (640, 480), interpolation=cv2.INTER_CUBIC)
        path = str(tmp_path / f"a{suffix}")
        cv2.imwrite(path, image)
        reduced = decode_image(path, reduction)
        assert reduced is not None and reduced.shape == (480 // reduction, 640 // reduction, 3)
        averaged = cv2.resize(image, (640 // reduction, 480 // reduction), interpolation=cv2.INTER_AREA)
        assert np.abs(reduced.astype(int) - averaged).mean() < 4

    @pytest.mark.parametrize("reduction", [1, 2, 4])
    def test_exif_rotation(self, tmp_path: Path, reduction: int) -> None:
        image = np.zeros((160, 320, 3), np.uint8)
        image[:80, :80] = 255  # upper left; turned clockwise by 90 degrees, upper right
        jpeg = cv2.imencode(".jpg", image)[1].tobytes()
        tag = b"II*\0" + struct.pack("<IHHHIII", 8, 1, 0x0112, 3, 1, 6, 0)
        segment = b"Exif\0\0" + tag
        path = tmp_path / "turned.jpg"
        path.write_bytes(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:])
        turned = decode_image(str(path), reduction)
        assert turned is not None and turned.shape == (320 // reduction, 160 // reduction, 3)
        assert turned[5, -5].min() > 240 and turned[5, 5].max() < 15 and turned[-5, -5].max() < 15

    def test_fit_long_side(self) -> None:
        image = np.zeros((50, 70, 3), np.uint8)
        assert fit_long_side(image, 96).shape == (68, 96, 3)  # 50 * 96 / 70 = 68.57
        assert fit_long_side(image, 70) is image
        image[::5] = 255  # every fifth line; the average is 51
        assert np.abs(fit_long_side(image, 14).astype(int) - 51).max() <= 1


class TestCaches:
    def test_ram_needs_no_files(self, tmp_path: Path, toys: DatasetIndex) -> None:
        index = toy_index(tmp_path)
        cached = DetectionDataset(index, SIZE, EVERYTHING, cache="ram")
        for record in index.records:
            Path(record.path).unlink()
        plain = DetectionDataset(toys, SIZE, EVERYTHING)
        assert all(torch.equal(cached[i].image, plain[i].image) for i in range(6))

    def test_ram_too_small(
        self, toys: DatasetIndex, monkeypatch: pytest.MonkeyPatch, warnings_logged: list[str]
    ) -> None:
        monkeypatch.setattr(data.decoding.decode, "available_memory", lambda: 1000)
        dataset = DetectionDataset(toys, SIZE, EVERYTHING, cache="ram")
        assert "--cache ram" in warnings_logged[0] and len(dataset[0].labels) >= 0

    @pytest.mark.parametrize("config", [EVERYTHING, None])
    def test_disk_decodes_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: AugmentConfig | None
    ) -> None:
        index = toy_index(tmp_path / "images")
        first = [DetectionDataset(index, SIZE, config, cache="disk")[i] for i in range(6)]
        ImageReader(index.records, SIZE, exact=config is None, cache="disk").read(0)
        for i in range(6):
            DetectionDataset(index, SIZE, config, cache="disk").reader.read(i)
        monkeypatch.setattr(data.decoding.decode, "decode_image", lambda *_: pytest.fail("decoded again"))
        again = DetectionDataset(index, SIZE, config, cache="disk")
        assert all(same(again[i], sample) for i, sample in enumerate(first))

    def test_disk_notices_a_new_image(self, tmp_path: Path) -> None:
        index = toy_index(tmp_path / "images")
        record = index.records[0]
        old = ImageReader(index.records, SIZE, cache="disk").read(0)
        cv2.imwrite(record.path, np.full_like(old, 77))
        later = os.stat(record.path).st_mtime + 10
        os.utime(record.path, (later, later))
        assert (ImageReader(index.records, SIZE, cache="disk").read(0) == 77).all()

    def test_disk_survives_a_broken_file(self, tmp_path: Path) -> None:
        index = toy_index(tmp_path / "images")
        image = ImageReader(index.records, SIZE, cache="disk").read(0)
        (file,) = (tmp_path / "images.pixels").iterdir()
        file.write_bytes(file.read_bytes()[:100])
        assert (ImageReader(index.records, SIZE, cache="disk").read(0) == image).all()

    def test_disk_not_writable(self, tmp_path: Path) -> None:
        index = toy_index(tmp_path / "images")
        (tmp_path / "images.pixels").write_text("in the way")
        with pytest.raises(UserError, match=r"images\.pixels.*--cache ram"):
            DetectionDataset(index, SIZE, None, cache="disk")

    def test_unknown(self, toys: DatasetIndex) -> None:
        with pytest.raises(UserError, match="did you mean 'disk'"):
            DetectionDataset(toys, SIZE, None, cache="dsk")

    def test_recent_images_stay_within_their_budget(self, toys: DatasetIndex) -> None:
        images = ImageReader(toys.records, SIZE)
        reader = ImageReader(toys.records, SIZE, recent_bytes=2 * images.read(0).nbytes)
        for i in range(6):
            reader.read(i)
        assert sum(image.nbytes for image in reader._recent.values()) <= reader.recent_bytes
        assert reader.read(5) is reader.read(5)

    def test_evaluation_remembers_all_or_nothing(self, toys: DatasetIndex) -> None:
        images = [ImageReader(toys.records, SIZE, exact=True).read(i) for i in range(6)]
        needed = sum(image.nbytes for image in images)
        for budget, remembers in ((int(1.1 * needed), True), (int(0.9 * needed), False)):
            reader = ImageReader(toys.records, SIZE, exact=True, recent_bytes=budget)
            assert (reader.read(0) is reader.read(0)) == remembers
