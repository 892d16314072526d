"""detect.py and `python -m checkpoints` as a user calls them."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import torch

from checkpoints.checkpoint import save_checkpoint
from models.yolo import Model
from tests.golden import ROOT, shared_path
from tests.integration.conftest import run_command
from tests.unit.checkpoints.test_checkpoint import payload, tiny
from tests.unit.data.sources.test_sources import write_image

ALL_FLAGS = """
--imgsz 64 96 --conf-thres 0.1 --iou-thres 0.5 --max-det 5 --save-txt --save-conf --save-csv --save-crop --classes 0 1
--agnostic-nms --augment --half --vid-stride 2 --line-thickness 2 --hide-labels --hide-conf --exist-ok --no-trace
--view-img --name all
"""


def call(*words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs a command and checks how it ends: an expected failure is one line, not a traceback."""
    done = run_command(*words)
    assert done.returncode == code, done.stdout + done.stderr
    assert not code or "Traceback" not in done.stderr
    return done


def detect(tmp_path: Path, *words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    return call("detect.py", "--project", tmp_path / "runs", "--device", "cpu", *words, code=code)


def counts(label_file: Path) -> dict[int, int]:
    return dict(Counter(int(line.split()[0]) for line in label_file.read_text().splitlines()))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector that finds something everywhere: every confidence starts at about one half."""
    torch.manual_seed(0)
    model: Model = tiny()
    with torch.no_grad():
        model.head.m[0].bias.fill_(0.5)  # type: ignore[union-attr,index,operator]
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    save_checkpoint(path, payload(model))
    return path


def test_the_official_yolov5n_finds_what_upstream_finds(tmp_path: Path) -> None:
    """At 640 pixels, confidence 0.25: bus.jpg 4 persons and 1 bus, zidane.jpg 3 persons and 1 tie."""
    weights, images = shared_path("weights/yolov5n.pt"), shared_path("data/images")
    listing = tmp_path / "two.txt"
    listing.write_text(f"{images / 'bus.jpg'}\n{images / 'zidane.jpg'}\n")
    done = detect(tmp_path, "--weights", weights, "--source", listing, "--save-txt", "--nosave")
    labels = tmp_path / "runs" / "exp" / "labels"
    assert counts(labels / "bus.txt") == {0: 4, 5: 1}
    assert counts(labels / "zidane.txt") == {0: 3, 27: 1}
    assert "2 images: 7 x person" in done.stdout and "ms an image" in done.stdout
    assert sorted(path.name for path in (tmp_path / "runs" / "exp").iterdir()) == ["labels"]


def test_all_flags_together(tmp_path: Path, weights: Path) -> None:
    write_image(tmp_path / "in" / "a.png", 90, (100, 150))
    done = detect(tmp_path, "--weights", weights, weights, "--source", tmp_path / "in", *ALL_FLAGS.split())
    folder = tmp_path / "runs" / "all"
    assert len((folder / "labels" / "a.txt").read_text().splitlines()) == 5
    assert (folder / "a.png").is_file() and (folder / "predictions.csv").is_file()
    assert "--half needs a GPU" in done.stdout and "--view-img" in done.stdout


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    text = "import runpy, sys\nsys.argv = ['detect.py', '--help']\n"
    text += "try:\n    runpy.run_path('detect.py', run_name='__main__')\nexcept SystemExit:\n    pass\n"
    text += "heavy = {'torch', 'numpy', 'cv2'} & set(sys.modules)\nassert not heavy, heavy\n"
    assert "--conf-thres" in call("-c", text).stdout


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    done = detect(tmp_path, "--weights", "none.pt", code=1)
    assert done.stderr == f"error: --weights 'none.pt' does not exist; check the path (looked in {ROOT})\n"
    assert "unrecognized arguments: --no-such-flag" in detect(tmp_path, "--no-such-flag", code=2).stderr
    assert not (tmp_path / "runs").exists()


def test_inspect_and_convert(tmp_path: Path) -> None:
    weights = shared_path("weights/yolov5n.pt")
    done = call("-m", "checkpoints", "inspect", weights)
    assert "yolov5" in done.stdout and "1,872,157 parameters" in done.stdout and "80: person, bicycle" in done.stdout
    call("-m", "checkpoints", "convert", weights, tmp_path / "own.pt")
    assert torch.load(tmp_path / "own.pt", weights_only=True)["model"]["nc"] == 80


def test_a_malicious_file_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {marker}",)

    torch.save({"model": Evil()}, tmp_path / "evil.pt")
    done = detect(tmp_path, "--weights", tmp_path / "evil.pt", "--source", write_image(tmp_path / "a.png"), code=1)
    assert "it names posix.system, which no supported YOLO checkpoint contains" in done.stderr
    assert not marker.exists()
