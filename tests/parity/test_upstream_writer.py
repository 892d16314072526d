"""Files that upstream's scripts wrote, read, written again, and compared part by part with the original."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints.checkpoint import load_checkpoint, load_model
from checkpoints.pickled.rebuild import StandIn
from checkpoints.pickled.unpickle import unpickle
from checkpoints.upstream.write import save_upstream
from tests.golden import shared_path

RELEASES = {
    "yolov5n-nc3_stripped": "7.0",
    "yolov5n-nc3_v61_stripped": "6.1",
    "yolov7-tiny-nc3_stripped": "0.1",
    "yolov8n-nc3_stripped": "8.2",
}
# What a finished run's file says of the run and not of the model.
OF_THE_RUN = {"best_fitness", "date", "opt", "license", "docs", "train_args", "train_metrics", "train_results"}
OF_THE_RUN_IN_THE_MODEL = {"yaml_file", "args", "class_weights"}


def rewritten(name: str, tmp_path: Path) -> tuple[Path, Path]:
    original = shared_path(f"weights/{name}.pt")
    model, hyp = load_model(original, fuse=False), load_checkpoint(original).hyp
    return original, save_upstream(model, tmp_path / "up.pt", hyp=hyp, release=RELEASES.get(name))


def modules(model: StandIn, path: str = "") -> Iterator[tuple[str, StandIn]]:
    yield path, model
    for name, part in model.attributes["_modules"].items():
        yield from modules(part, f"{path}.{name}")


def same(ours: Any, theirs: Any) -> bool:
    """Whether two values are equal, tensors with their shape and precision too."""
    if isinstance(theirs, torch.Tensor):
        return isinstance(ours, torch.Tensor) and ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    if isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(same(ours[key], value) for key, value in theirs.items())
    if isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return bool(ours == theirs)


@pytest.mark.parametrize("name", RELEASES)
def test_the_file_is_the_original_again(name: str, tmp_path: Path) -> None:
    original, written = (unpickle(path) for path in rewritten(name, tmp_path))
    assert written.classes == original.classes
    assert set(written.content) == set(original.content)
    for key, value in original.content.items():
        if key != "model" and key not in OF_THE_RUN:
            assert written.content[key] == value, key
    theirs, ours = (list(modules(unpickled.content["model"])) for unpickled in (original, written))
    assert [(path, part.class_name) for path, part in ours] == [(path, part.class_name) for path, part in theirs]
    assert len({id(part) for _, part in ours}) == len({id(part) for _, part in theirs}), "shared parts"
    for (path, our), (_, their) in zip(ours, theirs):
        assert set(our.attributes) == set(their.attributes), path
        for key, value in their.attributes.items():
            if key != "_modules" and not (path == "" and key in OF_THE_RUN_IN_THE_MODEL):
                assert same(our.attributes[key], value), (path, key)


@pytest.mark.parametrize("name", RELEASES)
def test_the_weights_are_the_originals_bit_for_bit(name: str, tmp_path: Path) -> None:
    original, written = (load_checkpoint(path) for path in rewritten(name, tmp_path))
    assert list(written.state_dict) == list(original.state_dict)
    assert all(torch.equal(written.state_dict[key], tensor) for key, tensor in original.state_dict.items())
    for key in ("family", "names", "nc", "stride", "anchors", "yaml"):
        assert getattr(written, key) == getattr(original, key), key


def test_the_official_yolov5n_moves_to_another_release(tmp_path: Path) -> None:
    original, written = (unpickle(path) for path in rewritten("yolov5n", tmp_path))
    assert written.classes - original.classes == {"models.yolo.DetectionModel"}
    own: defaultdict[str, set[str]] = defaultdict(set)
    for _, part in modules(original.content["model"]):
        own[part.short_name] |= {key for key in part.attributes if not key.startswith("_")}
    for _, part in modules(written.content["model"]):
        name = part.short_name.replace("DetectionModel", "Model")
        added = {key for key in part.attributes if not key.startswith("_")} - own[name]
        assert added <= {"anchor_grid", "recompute_scale_factor"}, name
    weights = load_checkpoint(tmp_path / "up.pt").state_dict
    for key, tensor in load_checkpoint(shared_path("weights/yolov5n.pt")).state_dict.items():
        assert key.endswith("anchor_grid") or torch.equal(weights[key], tensor), key


def test_ultralytics_takes_the_file(tmp_path: Path) -> None:
    ultralytics = pytest.importorskip("ultralytics")
    original, written = rewritten("yolov8n-nc3_stripped", tmp_path)
    image = torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    ours = load_model(original, fuse=False)
    theirs = ultralytics.YOLO(written)
    assert (theirs.task, theirs.names) == ("detect", dict(enumerate(ours.names)))
    with torch.no_grad():
        expected = ours(image)[0]
        found = theirs.model.float().eval()(image)[0]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)
        theirs.fuse()
        torch.testing.assert_close(theirs.model(image)[0], expected, rtol=1e-4, atol=1e-2)
