"""The built-in data set: pictures rendered from a seed, the same pixels on every machine.

Twelve classes of objects of very different sizes lie on textured ground, partly covering one another, among clutter
that is no object. Classes come in pairs of similar colour that differ in a detail of shape: the pairs are learnt soon,
the classes need a finer eye. Random numbers are the raw words of numpy's Philox generator, whose stream is fixed, and
all pixel arithmetic is on integers. Images are stored as PNG: what is identical everywhere are the decoded pixels and
the label files.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import cv2

from data.config import DatasetConfig, write_data_yaml
from data.rendering.scene import CLASS_NAMES, Box, RandomIntegers, render_scene
from utils.errors import UserError
from utils.files import write_image
from utils.logging import LOGGER, progress
from utils.text import shown, shown_path
from utils.yaml_io import check_keys

MARKER = ".rendered.json"
# Raised whenever the pictures of a seed change, so that older ones are rendered again.
RENDERER_VERSION = 3


@dataclass(frozen=True)
class SyntheticConfig:
    """What stands under `synthetic:` in a data yaml.

    Attributes:
        num_train: images of the training split.
        num_val: images of the validation split.
        num_test: images of the test split.
        img_size: side of the square images in pixels, 64 to 1024.
        seed: every seed is another data set.
    """

    num_train: int = 1200
    num_val: int = 300
    num_test: int = 100
    img_size: int = 192
    seed: int = 0

    @classmethod
    def parse(cls, parameters: Mapping[str, Any], where: str) -> SyntheticConfig:
        """From the yaml's mapping; a UserError for an unknown key or a value out of range."""
        check_keys(parameters, [entry.name for entry in fields(cls)], f"{where}, synthetic")
        for key, value in parameters.items():
            low, high = {"img_size": (64, 1024), "seed": (0, 2**31), "num_test": (0, 10**6)}.get(key, (1, 10**6))
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                expected = f"a whole number from {low} to {high}"
                raise UserError(f"{where}: synthetic {key} is {shown(value)}, expected {expected}")
        return cls(**parameters)


def ensure_rendered(root: Path, parameters: Mapping[str, Any], where: str) -> None:
    """Renders the data set into `root` unless it lies there already with these parameters.

    Raises:
        UserError: a parameter is wrong, or the folder holds something that was not rendered.
    """
    config = SyntheticConfig.parse(parameters, where)
    if _rendered_as(root) != _stamp(config):
        render_dataset(root, **asdict(config))


def render_dataset(root: Path, *, num_train: int, num_val: int, num_test: int, img_size: int, seed: int) -> Path:
    """Renders a data set: images/<split>, labels/<split> and data.yaml below `root`.

    One of other parameters is replaced. It is rendered beside `root` and moved there when it is complete: an
    interrupted run leaves nothing half done, and of several processes one wins.

    Returns:
        Path of the data yaml.

    Raises:
        UserError: the folder holds something that was not rendered.
    """
    if root.exists() and any(root.iterdir()) and _rendered_as(root) is None:
        raise UserError(
            f"the folder {shown_path(root)} for the rendered data set holds other files; choose a new folder"
        )
    config = SyntheticConfig(num_train, num_val, num_test, img_size, seed)
    partial = root.with_name(f"{root.name}.{os.getpid()}.partial")
    try:
        _render_into(partial, config)
        if _rendered_as(root) != _stamp(config):  # another process may have been faster
            shutil.rmtree(root, ignore_errors=True)
            os.rename(partial, root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root / "data.yaml"


def _render_into(root: Path, config: SyntheticConfig) -> None:
    counts = {"train": config.num_train, "val": config.num_val, "test": config.num_test}
    jobs = [
        (root, split, stream, index, config)
        for stream, (split, count) in enumerate(counts.items())
        for index in range(count)
    ]
    splits = [split for split, count in counts.items() if count]
    for split in splits:
        (root / "images" / split).mkdir(parents=True, exist_ok=True)
        (root / "labels" / split).mkdir(parents=True, exist_ok=True)
    LOGGER.info(f"rendering {len(jobs)} synthetic images of {config.img_size} px")
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for _ in progress(pool.map(_write_scene, jobs), total=len(jobs), desc="rendering", enabled=len(jobs) > 500):
            pass
    write_data_yaml(root, splits, CLASS_NAMES)
    (root / MARKER).write_text(json.dumps(_stamp(config)))


def _stamp(config: SyntheticConfig) -> dict[str, int]:
    return {"renderer": RENDERER_VERSION, **asdict(config)}


def _rendered_as(root: Path) -> dict[str, int] | None:
    try:
        return json.loads((root / MARKER).read_text())
    except (OSError, ValueError):
        return None


def _write_scene(job: tuple[Path, str, int, int, SyntheticConfig]) -> None:
    root, split, stream, index, config = job
    image, boxes = render_scene(config.img_size, RandomIntegers(config.seed, stream, index))
    name = f"{index:06d}"
    path = root / "images" / split / f"{name}.png"
    write_image(path, image, (cv2.IMWRITE_PNG_COMPRESSION, 1))
    lines = [_label_line(class_id, box, config.img_size) for class_id, box in boxes]
    (root / "labels" / split / f"{name}.txt").write_text("".join(lines))


def _label_line(class_id: int, box_xyxy: Box, img_size: int) -> str:
    x1, y1, x2, y2 = (value / img_size for value in box_xyxy)
    return f"{class_id} {(x1 + x2) / 2:.6f} {(y1 + y2) / 2:.6f} {x2 - x1:.6f} {y2 - y1:.6f}\n"


def ensure_dataset(config: DatasetConfig) -> DatasetConfig:
    """Renders the data set of a `synthetic:` yaml if it is not there yet, and returns `config`.

    Any other data set is left alone.
    """
    if config.synthetic is not None:
        from data.synthetic import ensure_rendered  # only such a yaml needs the renderer

        ensure_rendered(config.root, config.synthetic, str(config.path))
    return config
