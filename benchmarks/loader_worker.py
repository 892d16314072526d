"""One side of benchmarks/loader.py: makes training samples on demand and reports the processor time they took.

    python -m benchmarks.loader_worker ours|ultralytics DATA.yaml IMG_SIZE SAMPLES

Prints "ready", then for every line on standard input makes SAMPLES samples on one thread and prints a line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from utils.running.cli import run_command

AUGMENT = {"hsv_h": 0.015, "hsv_s": 0.7, "hsv_v": 0.4, "translate": 0.1, "scale": 0.5, "fliplr": 0.5, "mosaic": 1.0}
BATCH_SIZE = 16


def our_samples(data: Path, img_size: int) -> Iterator[Any]:
    """Samples of this project's data set, in the order in which its loader asks for them."""
    from data.augmentation.augment import AugmentConfig
    from data.config import load_dataset_config
    from data.dataset import DetectionDataset
    from data.labels import build_index
    from data.sampling import SampleRequest, epoch_order

    config = load_dataset_config(data)
    dataset = DetectionDataset(build_index(config.train, config.nc, cache=False), img_size, AugmentConfig(**AUGMENT))
    epoch = 0
    while True:
        for index in epoch_order(0, epoch, len(dataset)).tolist():
            yield dataset[SampleRequest(index, epoch)].image
        epoch += 1


def their_samples(data: Path, img_size: int) -> Iterator[Any]:
    """Samples of the ultralytics package's data set, in a random order."""
    from ultralytics.cfg import get_cfg
    from ultralytics.data import build_yolo_dataset
    from ultralytics.data.utils import check_det_dataset

    rest = {"degrees": 0.0, "shear": 0.0, "perspective": 0.0, "flipud": 0.0, "mixup": 0.0, "copy_paste": 0.0}
    config = get_cfg(overrides={"task": "detect", "imgsz": img_size, "cache": False, **AUGMENT, **rest})
    info = check_det_dataset(str(data))
    dataset = build_yolo_dataset(config, info["train"], BATCH_SIZE, info, mode="train", rect=False, stride=32)
    epoch = 0
    while True:
        for index in np.random.default_rng(epoch).permutation(len(dataset)).tolist():
            yield dataset[index]["img"]
        epoch += 1


SIDES: dict[str, Callable[[Path, int], Iterator[Any]]] = {"ours": our_samples, "ultralytics": their_samples}


def main() -> None:
    """Serves until standard input ends."""
    side, data, img_size, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    samples = SIDES[side](data, img_size)
    assert tuple(next(samples).shape) == (3, img_size, img_size)
    print("ready", flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(count):
            next(samples)
        print(json.dumps({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}), flush=True)


if __name__ == "__main__":
    run_command(main)
