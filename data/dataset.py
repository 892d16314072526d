"""The detection data set: from an index of images to samples for training and evaluation."""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from data.augmentation.augment import AugmentConfig, Scene, adjust_hsv, flip, labelled_scene, mixup
from data.augmentation.geometry import random_transform
from data.augmentation.mosaic import Layout, mosaic4_layout, mosaic9_layout, paint, single_layout
from data.augmentation.paste import Cutout, copy_paste, cut_out, paste_in
from data.decoding.decode import ImageReader, UnreadableImageError
from data.records import DatasetIndex
from data.sampling import PartnerPools, SampleRequest, sample_rng
from utils.boxes import RatioPad, cxcywh_to_xyxy, xyxy_to_cxcywh
from utils.errors import UserError
from utils.letterbox import letterbox
from utils.logging import LOGGER

NUM_DONORS = 4  # images that objects are taken from for paste_in


class SampleShape(NamedTuple):
    """Where a sample comes from.

    Attributes:
        original_hw: height and width of the image file.
        ratio_pad: how it became the network's input, for utils.boxes.scale_boxes; None for an augmented image.
    """

    original_hw: tuple[int, int]
    ratio_pad: RatioPad | None


class Sample(NamedTuple):
    """One image ready for the network.

    Attributes:
        image: uint8 RGB (3, H, W).
        labels: float32 (n, 5) rows [class, cx, cy, w, h], normalised to the image.
        path: the image file; of a mosaic, its first image's.
        shape: see SampleShape.
    """

    image: torch.Tensor
    labels: torch.Tensor
    path: str
    shape: SampleShape


class DetectionDataset(Dataset[Sample]):
    """Images with boxes.

    A sample depends on (seed, epoch, index) alone. What the object remembers between samples, such as decoded images,
    only saves time.

    Args:
        index: the images and their labels.
        img_size: side of a square sample; with `rect`, the longer side that images are fitted to. In pixels.
        augment: random changes for training; None for evaluation.
        rect: sort images by their proportions and give each batch the smallest shape that fits. Without mosaics.
        batch_size: of rectangular batches.
        stride: the network's largest; sides of rectangular batches are multiples of it.
        pad: extra border of rectangular batches, in strides.
        cache: None, "ram" or "disk": where decoded images are kept.
        seed: of all random changes, at least 0.
        fixed_hw: height and width of every sample, instead of a square or what `rect` finds; for evaluation.

    Raises:
        UserError: the cache is unknown or cannot be written.
    """

    def __init__(
        self,
        index: DatasetIndex,
        img_size: int,
        augment: AugmentConfig | None,
        *,
        rect: bool = False,
        batch_size: int = 16,
        stride: int = 32,
        pad: float = 0.0,
        cache: str | None = None,
        seed: int = 0,
        fixed_hw: tuple[int, int] | None = None,
    ) -> None:
        self.records = index.records
        self.img_size = img_size
        self.augment = augment
        self.rect = rect
        self.batch_size = batch_size
        self.seed = seed
        self.fixed_hw = fixed_hw
        self.batch_shapes: list[tuple[int, int]] = []
        if rect:
            self.records = sorted(index.records, key=lambda record: record.height / record.width)
            self.batch_shapes = rectangular_shapes(
                np.array([record.height / record.width for record in self.records]), batch_size, img_size, stride, pad
            )
        self.use_polygons = any(record.segments for record in self.records)
        self.reader = ImageReader(self.records, img_size, exact=augment is None, cache=cache)
        self.pools = PartnerPools(seed, len(self.records))
        self.unreadable: set[int] = set()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, request: int | SampleRequest) -> Sample:
        """The sample of an index, in epoch 0 unless a SampleRequest says otherwise.

        Raises:
            UserError: an image cannot be read in evaluation, or none can in training.
        """
        if not isinstance(request, SampleRequest):
            request = SampleRequest(int(request))
        if self.augment is None:
            return self._plain_sample(request.index)
        while True:
            try:
                return self._augmented_sample(request, self.augment)
            except UnreadableImageError as error:
                self._leave_out(error)

    def output_hw(self, index: int) -> tuple[int, int]:
        """Height and width of the sample of an index."""
        if self.fixed_hw:
            return self.fixed_hw
        return self.batch_shapes[index // self.batch_size] if self.rect else (self.img_size, self.img_size)

    def _leave_out(self, error: UnreadableImageError) -> None:
        self.unreadable.add(error.index)
        if len(self.unreadable) == len(self):
            raise UserError(f"none of the {len(self)} training images can be read any more, last {error.path!r}")
        LOGGER.warning(f"{error}; another image takes its place")

    def _readable(self, index: int) -> int:
        """`index`, or the next one whose image can be read."""
        while index in self.unreadable:
            index = (index + 1) % len(self)
        return index

    def _plain_sample(self, index: int) -> Sample:
        record = self.records[index]
        try:
            image = self.reader.read(index)
        except UnreadableImageError as error:
            raise UserError(f"{error}; restore it, or start again so that it is left out") from error
        resized_h, resized_w = image.shape[:2]
        image, ratio, pad = letterbox(image, self.output_hw(index), auto=False, scaleup=False)
        scale = np.array([ratio[0] * resized_w, ratio[1] * resized_h] * 2)
        boxes = cxcywh_to_xyxy(record.labels[:, 1:].astype(np.float64)) * scale + (*pad, *pad)
        ratio_pad = ((ratio[1] * resized_h / record.height, ratio[0] * resized_w / record.width), pad)
        return self._sample(Scene(image, record.labels[:, 0], boxes), index, ratio_pad)

    def _augmented_sample(self, request: SampleRequest, config: AugmentConfig) -> Sample:
        rng = sample_rng(self.seed, request.epoch, request.index)
        index = self._readable(request.index)
        pool = self.pools.pool(request.index, request.epoch)
        if request.mosaic and not self.rect and rng.random() < config.mosaic:
            scene = self._mosaic(index, pool, rng, config)
            if rng.random() < config.mixup:
                share = rng.beta(config.mixup_alpha, config.mixup_alpha)
                scene = mixup(scene, self._mosaic(self._partners(pool, 1, rng)[0], pool, rng, config), share)
            if self.use_polygons and rng.random() < config.paste_in:
                scene = paste_in(scene, self._cutouts(pool, rng), rng)
        else:
            height, width = self.output_hw(request.index)
            record = self.records[index]
            layout = single_layout(index, (record.width, record.height), (width, height))
            scene = self._paint(layout, (width, height), rng, config)
        gains = 1 + rng.uniform(-1, 1, 3) * (config.hsv_h, config.hsv_s, config.hsv_v)
        if config.hsv_h or config.hsv_s or config.hsv_v:
            adjust_hsv(scene.image, gains)
        return self._sample(scene, index, None, rng.random() < config.flipud, rng.random() < config.fliplr)

    def _partners(self, pool: np.ndarray, count: int, rng: np.random.Generator) -> list[int]:
        return [self._readable(index) for index in pool[rng.integers(0, len(pool), count)].tolist()]

    def _mosaic(self, index: int, pool: np.ndarray, rng: np.random.Generator, config: AugmentConfig) -> Scene:
        nine = rng.random() < config.mosaic9
        indices = [index, *self._partners(pool, 8 if nine else 3, rng)]
        if not nine:
            indices = [indices[i] for i in rng.permutation(4)]  # the sample's own image has no favourite place
        sizes = [(self.records[i].width, self.records[i].height) for i in indices]
        make_layout = mosaic9_layout if nine else mosaic4_layout
        layout = make_layout(rng, indices, sizes, self.img_size)
        scene = self._paint(layout, (self.img_size, self.img_size), rng, config)
        return copy_paste(scene, config.copy_paste, rng) if config.copy_paste else scene

    def _paint(
        self, layout: Layout, output_wh: tuple[int, int], rng: np.random.Generator, config: AugmentConfig
    ) -> Scene:
        transform = random_transform(
            rng, (layout.width, layout.height), output_wh, degrees=config.degrees, translate=config.translate,
            scale=config.scale, shear=config.shear, perspective=config.perspective,
        )  # fmt: skip
        image, placements = paint(layout, transform, output_wh, self.reader.read)
        return labelled_scene(image, placements, self.records, self.use_polygons)

    def _cutouts(self, pool: np.ndarray, rng: np.random.Generator) -> list[Cutout]:
        cutouts = []
        for index in self._partners(pool, NUM_DONORS, rng):
            record = self.records[index]
            if record.segments:
                image = self.reader.read(index)
                ratio = self.img_size / max(image.shape[:2])
                if ratio < 1:
                    image = cv2.resize(image, None, fx=ratio, fy=ratio, interpolation=cv2.INTER_AREA)
                size = (image.shape[1], image.shape[0])
                cutouts += cut_out(image, record.labels[:, 0], [segment * size for segment in record.segments])
        return cutouts

    def _sample(
        self, scene: Scene, index: int, ratio_pad: RatioPad | None, flipud: bool = False, fliplr: bool = False
    ) -> Sample:
        record = self.records[index]
        image = to_tensor(scene.image)
        boxes = flip(image.numpy(), scene.boxes_xyxy, flipud, fliplr)
        width, height = scene.size_wh
        labels = np.empty((len(boxes), 5), np.float32)
        labels[:, 0] = scene.classes
        labels[:, 1:] = xyxy_to_cxcywh(boxes) / (width, height, width, height)
        return Sample(
            image, torch.from_numpy(labels), record.path, SampleShape((record.height, record.width), ratio_pad)
        )


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """uint8 BGR (H, W, 3) array to contiguous uint8 RGB (3, H, W) tensor."""
    planes = torch.empty((3, *image.shape[:2]), dtype=torch.uint8)
    red, green, blue = planes.numpy()
    cv2.split(image, [blue, green, red])  # writes into the tensor's memory
    return planes


def rectangular_shapes(
    aspects: np.ndarray, batch_size: int, img_size: int, stride: int, pad: float
) -> list[tuple[int, int]]:
    """The shape (height, width) of each batch of images.

    Args:
        aspects: height over width of all images in ascending order, (n,).
        batch_size: images in a batch.
        img_size: the longer side that images are fitted to, in pixels.
        stride: sides are multiples of it.
        pad: strides that are added before rounding up.
    """
    shapes = []
    for start in range(0, len(aspects), batch_size):
        batch = aspects[start : start + batch_size]
        share_h = share_w = 1.0
        if batch.max() < 1:  # all are wide
            share_h = batch.max()
        elif batch.min() > 1:  # all are tall
            share_w = 1 / batch.min()
        height, width = (math.ceil(share * img_size / stride + pad) * stride for share in (share_h, share_w))
        shapes.append((height, width))
    return shapes
