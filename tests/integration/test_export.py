"""export.py as a user calls it, and detect.py and test.py with what it wrote."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.config import load_dataset_config
from data.labels import build_index
from data.loader import validation_loader
from engine.inference.ensemble import load_detector
from engine.inference.evaluate import evaluate
from engine.inference.predict import OutputOptions, PredictOptions, run_predict
from engine.inference.testing import TestOptions, run_test
from tests.integration.conftest import checked, run_command
from tests.integration.test_testing import options  # noqa: F401  a data set, and a detector that is perfect on it
from utils.errors import UsageError


@pytest.fixture(scope="module")
def folder(options: TestOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A folder with best.pt exported in every form, and fixed.onnx for two images of 64 x 96 pixels."""
    folder = tmp_path_factory.mktemp("exported")
    for name in ("best", "fixed"):
        shutil.copy(options.weights[0], folder / f"{name}.pt")
    forms = ("--include", "torchscript", "onnx", "openvino", "upstream")
    done = checked("export.py", "--weights", folder / "best.pt", *forms, "--dynamic", "--grid", "--imgsz", 96)
    assert done.stdout.count("largest relative difference from PyTorch") == 3
    checked("export.py", "--weights", folder / "fixed.pt", "--img-size", 64, 96, "--batch-size", 2, "--simplify")
    return folder


def test_every_form_has_the_figures_of_the_checkpoint(options: TestOptions, folder: Path) -> None:  # noqa: F811
    def figures(name: str) -> dict[str, float]:
        named = replace(options, weights=(str(folder / name),), project=str(folder / "runs"), trust=True)
        return run_test(named)[0].as_row()

    expected = figures("best.pt")
    assert expected["metrics/AP"] > 0.99
    for name in ("best.onnx", "best.torchscript", "best_openvino_model"):
        assert figures(name) == pytest.approx(expected, abs=1e-6, nan_ok=True), name


def test_the_command_line_measures_an_onnx_file(options: TestOptions, folder: Path) -> None:  # noqa: F811
    settings = ("--img", 96, "--batch", 4, "--conf-thres", 0.01, "--iou-thres", 0.3, "--max-det", 5, "--workers", 0)
    words = ("--weights", folder / "best.onnx", "--data", options.data, *settings, "--noplots", "--device", "cpu")
    checked("test.py", *words, "--project", folder / "measured")
    assert json.loads((folder / "measured/exp/results.json").read_text())["metrics"]["metrics/AP"] > 0.99


def test_a_fixed_file_is_measured_at_its_own_size(options: TestOptions, folder: Path) -> None:  # noqa: F811
    """Six images in batches of four through a file of two; the checkpoint on images of that size has the same AP."""
    by_file = run_test(replace(options, weights=(str(folder / "fixed.onnx"),), project=str(folder / "runs")))[0]
    config = load_dataset_config(options.data)
    index = build_index(config.split("val"), config.nc, need_boxes=True)
    cpu = torch.device("cpu")
    by_model = evaluate(
        load_detector((str(folder / "fixed.pt"),), cpu), validation_loader(index, 96, 4, 0, 32, (64, 96)),
        names=config.names, device=cpu, conf_thres=options.conf_thres, iou_thres=options.iou_thres,
        max_det=options.max_det, progress=False,
    )  # fmt: skip
    assert 0.1 < by_model.coco.ap50 < 1
    assert by_file.as_row() == pytest.approx(by_model.as_row(), abs=1e-6, nan_ok=True)


def test_detection_finds_the_same(options: TestOptions, folder: Path) -> None:  # noqa: F811
    source = Path(options.data).parent / "images"
    settings = ("--source", source, "--img", 96, "--conf-thres", 0.01, "--max-det", 5, "--device", "cpu")
    project = folder / "detected"
    words = ("--weights", folder / "best.onnx", *settings, "--nosave", "--save-txt")
    checked("detect.py", *words, "--project", project, "--name", "onnx")
    output = OutputOptions(save_images=False, save_txt=True)
    weights = (str(folder / "best.pt"),)
    run_predict(
        PredictOptions(weights, str(source), (96,), 0.01, 0.45, 5, project=str(project), name="pt", output=output)
    )
    by_model, by_file = (
        {path.name: path.read_text() for path in (project / name / "labels").iterdir()} for name in ("pt", "onnx")
    )
    assert len(by_model) == 6 and by_model == by_file


def test_a_program_needs_a_word_of_trust(options: TestOptions, folder: Path) -> None:  # noqa: F811
    file = folder / "best.torchscript"
    words = ("--weights", file, "--device", "cpu", "--project", folder / "trusted", "--img", 96, "--nosave")
    done = run_command("detect.py", *words, "--source", Path(options.data).parent / "images")
    assert done.returncode == 2 and "is a program" in done.stderr and "Traceback" not in done.stderr
    here = replace(options, weights=(str(file),), project=str(folder / "trusted"))
    with pytest.raises(UsageError, match="is a program"):
        run_test(here)
    assert run_test(replace(here, trust=True))


def test_a_mistake_is_one_line(folder: Path) -> None:
    done = run_command("export.py", "--weights", folder / "best.pt", "--include", "onxx")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "did you mean 'onnx'?" in done.stderr


def test_what_an_exported_file_cannot_do(options: TestOptions, folder: Path) -> None:  # noqa: F811
    files = {name: (str(folder / name),) for name in ("best.onnx", "fixed.onnx")}
    here = replace(options, project=str(folder / "runs"))
    with pytest.raises(UsageError, match="--augment needs a checkpoint"):
        run_test(replace(here, weights=files["best.onnx"], augment=True))
    with pytest.raises(UsageError, match=r"--task study .* takes images of \(64, 96\) pixels only"):
        run_test(replace(here, weights=files["fixed.onnx"], task="study"))


def test_help_imports_nothing_heavy() -> None:
    text = "import runpy, sys\nsys.argv = ['export.py', '--help']\n"
    text += "try:\n    runpy.run_path('export.py', run_name='__main__')\nexcept SystemExit:\n    pass\n"
    text += "heavy = {'torch', 'numpy', 'onnx'} & set(sys.modules)\nassert not heavy, heavy\n"
    assert "--end2end" in checked("-c", text).stdout
