"""The example of distillation in a foreign trainer, run by that trainer itself."""

from __future__ import annotations

import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

ultralytics = pytest.importorskip("ultralytics", reason="the example is for this package")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for number in range(8):
        for kind in ("images", "labels"):
            (tmp_path / kind).mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / f"images/{number}.jpg"), rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))
        (tmp_path / f"labels/{number}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    path = tmp_path / "data.yaml"
    path.write_text(yaml.safe_dump({"path": str(tmp_path), "train": "images", "val": "images", "names": ["thing"]}))
    return path


def test_the_packages_own_trainer_distils(data: Path, tmp_path: Path) -> None:
    from examples.ultralytics_trainer import distillation_trainer

    teacher = ultralytics.YOLO("yolov8s.yaml").model
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    seen: dict[str, object] = {}

    class Watched(distillation_trainer(teacher, {"cwd": {}}, ["model.15", "model.18", "model.21"])):  # type: ignore[misc]
        def _setup_train(self, *args: object, **kwargs: object) -> None:
            super()._setup_train(*args, **kwargs)
            seen["adapters"] = [p.detach().clone() for p in self.distiller.parameters()]
            seen["trainer"] = self

    ultralytics.YOLO("yolov8n.yaml").train(
        data=str(data), epochs=2, imgsz=64, batch=4, nbs=4, device="cpu", workers=0, plots=False, pretrained=False,
        trainer=Watched, project=str(tmp_path / "runs"), name="x",
    )  # fmt: skip
    distiller = seen["trainer"].distiller  # type: ignore[attr-defined]
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert any(not torch.equal(old, new) for old, new in zip(seen["adapters"], distiller.parameters()))  # type: ignore[call-overload]
    best = tmp_path / "runs/x/weights/best.pt"
    with zipfile.ZipFile(best) as archive:
        pickled = next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    assert b"distill.taps" not in pickled and b"AddToLoss" not in pickled  # a plain student
    assert len(ultralytics.YOLO(str(best)).predict(np.zeros((64, 64, 3), np.uint8), verbose=False)) == 1
