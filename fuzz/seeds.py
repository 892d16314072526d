"""Valid inputs of each reader, as small as they can be: what mutations begin with."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import yaml

from checkpoints.checkpoint import save_checkpoint
from checkpoints.pickled.unpickle import unpickle
from checkpoints.upstream.pickle import StandInPickle, StandInPickler
from checkpoints.upstream.write import save_upstream
from fuzz.targets import FOLDER_MARK, CacheTarget
from models.yolo import Model

ROOT = Path(__file__).resolve().parents[1]
HYP_FILES = ("scratch-low.yaml", "distill.fgd.yaml", "distill.output.yaml", "distill.mimic.yaml")

V5: dict[str, Any] = {
    "nc": 2,
    "anchors": [[10, 13]],
    "backbone": [[-1, 1, "Conv", [8, 3, 2]]],
    "head": [[[0], 1, "Detect", ["nc", "anchors"]]],
}
V7: dict[str, Any] = {
    **V5,
    "backbone": [[-1, 1, "RepConv", [8, 3, 2]]],
    "head": [[[0], 1, "IDetect", ["nc", "anchors"]]],
}
V8: dict[str, Any] = {
    "nc": 2,
    "scales": {"n": [0.33, 0.25, 1024]},
    "backbone": [[-1, 1, "Conv", [32, 3, 2]]],
    "head": [[[0], 1, "Detect", ["nc"]]],
    "channel_plan": {
        **{f"model.1.{branch}.0.{i}.conv": [4 if i else None, 4] for branch in ("cv2", "cv3") for i in (0, 1)},
        **{f"model.1.{branch}.0.{i}.bn": [4] for branch in ("cv2", "cv3") for i in (0, 1)},
        **{f"model.1.{branch}.0.2": [4, None] for branch in ("cv2", "cv3")},
    },
}

NECK = """nc: 3
depth_multiple: 0.33
width_multiple: 0.25
anchors:
  - [10, 13, 16, 30]
  - [30, 61, 62, 45]
activation: nn.LeakyReLU(0.1)
backbone:
  - [-1, 1, Conv, [32, 6, 2, 2]]
  - [-1, 3, C3, [32]]
  - [-1, 1, Conv, [64, 3, 2]]
  - [-1, 1, SPPF, [64, 5]]
head:
  - [-1, 1, nn.Upsample, [None, 2, nearest]]
  - [[-1, 1], 1, Concat, [1]]
  - [-1, 1, Bottleneck, [32, False]]
  - [[6, 3], 1, Detect, [nc, anchors]]
"""


def seeds(reader: str, folder: Path) -> list[bytes]:
    """Valid inputs of a reader, the same in every process.

    Args:
        reader: a key of `SEEDS`.
        folder: an existing folder for what has to be written on the way.
    """
    torch.manual_seed(0)
    return SEEDS[reader](folder)


def _checkpoints(folder: Path) -> list[bytes]:
    """Our own form, upstream's of three families, and weights alone; some in the older container too."""
    path, found = folder / "seed.pt", []
    for architecture in (V5, V7, V8):
        model = Model(architecture)
        model.names = ["cat", "dog"]
        entry = {
            "yaml": model.yaml,
            "state_dict": model.state_dict(),
            "names": model.names,
            "nc": model.nc,
            "stride": model.stride.tolist(),
            "family": model.family,
        }
        content = {"model": entry, "hyp": {"lr0": 0.01}, "epoch": 3, "best_fitness": 0.5, "metrics": {"AP": 0.1}}
        save_checkpoint(path, content)
        found.append(path.read_bytes())
        save_upstream(model, path, hyp={"lr0": 0.01, "box": 0.05})
        found.append(path.read_bytes())
        if architecture is V5:
            found.append(_legacy(path))
    model = Model(V5)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    training = {"optimizer": optimizer.state_dict(), "state_dict": model.state_dict(), "rng": torch.get_rng_state()[:8]}
    model_entry = {"yaml": model.yaml, "state_dict": model.state_dict(), "names": ["a", "b"], "nc": 2, "stride": [2.0]}
    save_checkpoint(path, {"model": model_entry, "hyp": {}, "epoch": 0, "best_fitness": None, "training": training})
    found += [path.read_bytes(), _legacy(path)]
    views = {"whole": torch.arange(24.0).reshape(4, 6), "fitness": np.float64(0.5), "array": np.arange(3)}
    views |= {"part": views["whole"][1:3, ::2], "turned": views["whole"].t(), "empty": torch.empty(0, 3)}
    for content in (model.state_dict(), views):
        torch.save(content, path)
        found.append(path.read_bytes())
    return found


class _LegacyPickle(StandInPickle):
    """What `torch.save` needs besides for the older container."""

    @staticmethod
    def dump(value: Any, stream: BinaryIO, protocol: int) -> None:
        StandInPickler(stream, protocol).dump(value)


def _legacy(path: Path) -> bytes:
    """The content of a checkpoint in the container of PyTorch before 1.6."""
    stream = io.BytesIO()
    content = unpickle(path).content
    torch.save(content, stream, pickle_module=_LegacyPickle, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def _yamls(folder: Path) -> list[bytes]:
    """A yaml of each kind behind a line that says which."""
    files = {
        "hyp": [(ROOT / "hyp" / name).read_text() for name in HYP_FILES if (ROOT / "hyp" / name).exists()],
        "data": [
            "path: data\ntrain: .\nval: [., ../data]\ntest:\nnc: 2\nnames: [cat, dog]\n",
            "train: data\nval: data\nnames: {0: cat, 1: 2}\ndownload: x\n",
            (ROOT / "data/synthetic.yaml").read_text(),
        ],
        "experiment": [(ROOT / "experiments/demo.yaml").read_text()],
        "model": [yaml.safe_dump(one, sort_keys=False, default_flow_style=None) for one in (V5, V7, V8)] + [NECK],
        "file": ["a: 1\nb: [x, y]\n"],
    }
    return [f"# {kind}\n{_without_comments(text)}".encode() for kind, texts in files.items() for text in texts]


def _without_comments(text: str) -> str:
    lines = (line.partition(" #")[0].rstrip() for line in text.splitlines() if not line.lstrip().startswith("#"))
    return "\n".join(line for line in lines if line) + "\n"


def _rows(folder: Path) -> list[bytes]:
    return [
        b"0 0.5 0.5 0.2 0.3\n1 0.25 0.25 0.1 0.1\n",
        b"0 0.1 0.1 0.4 0.1 0.4 0.6\n2 0.5 0.5 1 1\n3 0.1 0.1 0.2 0.1 0.2 0.2 0.1 0.2\n",
        b"\xef\xbb\xbf0 1.0005 0.5 0.2 0.2\r\n\r\n0 0.5 0.5 0.2 0.2\r\n",
        b"",
    ]


def _caches(folder: Path) -> list[bytes]:
    """The cache of the target's own data set, whose folder is written as a mark."""
    target = CacheTarget(folder)
    return [target.fresh_cache()]


def _annotations(folder: Path) -> list[bytes]:
    box = "<bndbox><xmin>11</xmin><ymin>6</ymin><xmax>30</xmax><ymax>25</ymax></bndbox>"
    dog = f"<object><name>dog</name><difficult>0</difficult>{box}</object>"
    size = "<size><width>64</width><height>48</height><depth>3</depth></size>"
    coco = {
        "info": {"year": 2024},
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 48}, {"id": 2, "file_name": "b.png"}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 7, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "bbox": [10, 5, 20.5, 20], "iscrowd": 0, "area": 410},
            {
                "id": 2, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9],
                "segmentation": [[1, 1, 10, 1, 10, 10, 1, 10]],
            },
            {"id": 3, "image_id": 2, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 1},
        ],
    }  # fmt: skip
    voc = f"<annotation><filename>a.png</filename>{size}{dog}{dog.replace('dog', 'cat')}</annotation>"
    return [voc.encode(), json.dumps(coco).encode()]


SEEDS: dict[str, Callable[[Path], list[bytes]]] = {
    "checkpoint": _checkpoints,
    "yaml": _yamls,
    "labels": _rows,
    "cache": _caches,
    "convert": _annotations,
}
__all__ = ["FOLDER_MARK", "SEEDS", "seeds"]
