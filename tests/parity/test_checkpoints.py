"""Files written by the upstream repositories, loaded into our model, against upstream's own outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from checkpoints.checkpoint import load_checkpoint, load_model, save_checkpoint, to_payload
from checkpoints.inspect import describe
from tests.golden import load_json, meta, shared_path

FAMILIES = {
    "yolov5n-nc3": ("yolov5", "yolov5n"),
    "yolov5n-nc3_v61": ("yolov5", "yolov5n"),
    "yolov7-tiny-nc3": ("yolov7", "yolov7-tiny-training"),
    "yolov8n-nc3": ("yolov8", "yolov8n"),
}


def deviation(output: torch.Tensor, arrays: dict[str, np.ndarray], name: str) -> tuple[float, float]:
    """Largest deviation of the stored values, and upstream's own in float32."""
    facts = meta(arrays)["arrays"][name]
    assert list(output.shape) == facts["shape"]
    assert output.double().abs().sum().item() == pytest.approx(facts["abs_sum"], rel=1e-5)
    stored = output.flatten()[:: facts["step"]].numpy()
    return float(np.abs(stored - arrays[name]).max()), facts["f32_maxdev"]


@pytest.mark.parametrize("fuse", [False, True], ids=["unfused", "fused"])
@pytest.mark.parametrize("name", FAMILIES)
def test_outputs_are_upstreams(name: str, fuse: bool) -> None:
    with np.load(shared_path(f"weights/{name}_expected.npz"), allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    model = load_model(shared_path(f"weights/{name}_stripped.pt"), fuse=fuse)
    assert not model.training and model.nc == 3 and model.names == ["raccoon", "kangaroo", "platelet"]
    for image in ("sq", "rect"):
        with torch.no_grad():
            decoded, _ = model(torch.from_numpy(arrays[f"image_{image}"]).float()[None] / 255)
        ours, upstreams = deviation(decoded, arrays, f"{image}_dec")
        assert ours <= 2 * upstreams, (image, ours, upstreams)


@pytest.mark.parametrize("name", FAMILIES)
def test_keys_and_order_are_upstreams(name: str) -> None:
    family, architecture = FAMILIES[name]
    checkpoint = load_checkpoint(shared_path(f"weights/{name}_stripped.pt"))
    assert (checkpoint.kind, checkpoint.family, checkpoint.nc) == ("upstream", family, 3)
    keys = [row[0] for row in load_json(f"models/{architecture}.json")["state_dict"]]
    assert list(checkpoint.state_dict) == keys
    floating = [tensor for tensor in checkpoint.state_dict.values() if tensor.is_floating_point()]
    assert all(tensor.dtype == torch.float32 for tensor in floating)


def test_the_official_yolov5n() -> None:
    checkpoint = load_checkpoint(shared_path("weights/yolov5n.pt"))
    assert (checkpoint.family, checkpoint.nc, checkpoint.head) == ("yolov5", 80, "Detect")
    assert checkpoint.names[0] == "person" and len(checkpoint.names) == 80
    assert checkpoint.stride == [8.0, 16.0, 32.0]
    assert checkpoint.anchors == [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 373, 326]]
    assert checkpoint.best_fitness == pytest.approx(0.26757, abs=1e-5)
    assert checkpoint.hyp["lr0"] == 0.01
    assert "models.yolo.Detect" in checkpoint.classes


RELEASES = {
    "yolov5n-nc3_stripped": "YOLOv5 7.0",
    "yolov5n-nc3_v61_stripped": "YOLOv5 6.0 or 6.1",
    "yolov5n": "YOLOv5 6.0 or 6.1",
    "yolov7-tiny-nc3_stripped": "YOLOv7, training form",
    "yolov8n-nc3_stripped": "ultralytics 8.2.103",
}


@pytest.mark.parametrize("name", RELEASES)
def test_what_is_told_of_a_file(name: str) -> None:
    text = "\n".join(describe(load_checkpoint(shared_path(f"weights/{name}.pt"))))
    assert f"written by:   upstream, {RELEASES[name]}\n" in text
    assert "stored as float16" in text and "stripped of:  optimizer, ema" in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("name", [*(f"{name}_stripped" for name in FAMILIES), "yolov5n"])
def test_converted_files_load_safely_and_equal_the_original(name: str, tmp_path: Path) -> None:
    original = load_checkpoint(shared_path(f"weights/{name}.pt"))
    save_checkpoint(tmp_path / "own.pt", to_payload(original))
    safe = torch.load(tmp_path / "own.pt", weights_only=True)
    assert list(safe["model"]["state_dict"]) == list(original.state_dict)
    converted = load_checkpoint(tmp_path / "own.pt")
    assert (converted.kind, converted.family, converted.names) == ("own", original.family, original.names)
    for key, tensor in original.state_dict.items():
        assert torch.equal(converted.state_dict[key], tensor), key
    assert load_model(tmp_path / "own.pt").names == original.names
