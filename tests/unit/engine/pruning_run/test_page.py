from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from checkpoints.checkpoint import load_checkpoint, save_checkpoint
from data.synthetic import render_dataset
from engine.config.options import TrainOptions
from engine.pruning_run.bench import Produced, Workbench
from engine.pruning_run.config import PruneOptions
from engine.pruning_run.page import pruning_page
from engine.pruning_run.prune import run_prune
from engine.reporting.page import render
from engine.training.state import model_entry
from models.yolo import Model
from pruning import PruneSettings
from pruning.sensitivity import Sensitivity
from tests.golden import ROOT

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> tuple[PruneOptions, Path]:
    """The options of `prune.py prune`, and the folder that it leaves; a class has the name of an element."""
    folder = tmp_path_factory.mktemp("pruned")
    data = render_dataset(folder / "set", num_train=4, num_val=4, num_test=0, img_size=64, seed=0)
    content = yaml.safe_load(data.read_text())
    content |= {"names": [EVIL, *list(content["names"])[1:]], "path": str(folder / "set")}
    (folder / "data.yaml").write_text(yaml.safe_dump(content))
    architecture = yaml.safe_load((ROOT / "cfg/yolov5/yolov5n.yaml").read_text())
    torch.manual_seed(0)
    model = Model(architecture | {"width_multiple": 0.0625, "depth_multiple": 0.1}, nc=len(content["names"]))
    model.names = content["names"]
    save_checkpoint(folder / "full.pt", {"model": model_entry(model)})
    training = TrainOptions(
        weights=str(folder / "full.pt"), data=str(folder / "data.yaml"), hyp=str(ROOT / "hyp/scratch-low.yaml"),
        img_size=(64, 64), batch_size=4, workers=0, device="cpu", noplots=True, project=str(folder), name="run",
    )  # fmt: skip
    settings = PruneSettings(importance="l2", round_to=2, min_keep=0.1)
    options = PruneOptions("prune", training, settings, targets=(0.2, 0.4), batches=1)
    return options, run_prune(options)


def test_the_page_of_a_pruning(pruned: tuple[PruneOptions, Path]) -> None:
    _, folder = pruned
    html = (folder / "report.html").read_text(encoding="utf-8")
    rows = json.loads((folder / "report.json").read_text())["rows"]
    fewer = 100 * (1 - rows[2]["parameters"] / rows[0]["parameters"])
    assert fewer > 10 and f"Pruned (0.4): {fewer:.0f} % fewer parameters" in html
    for title in ("Models", "Accuracy against cost", "Widths, target 0.2", "Widths, target 0.4", "To repeat it"):
        assert f"<h2>{title}</h2>" in html
    for row in rows:
        assert f"{row['parameters'] / 1e6:.2f} M" in html and f"{row['ms_batch16']:.1f}" in html
    least, most = (100 * value for value in rows[2]["change_over_images"])
    assert f"{least:.1f} to {most:.1f}" in html and rows[0]["change_over_images"] is None
    assert html.count("<details>") == 3, "a fold for each model"
    assert "One run of each model" in html and "<h2>Sensitivity</h2>" not in html and EVIL not in html


def test_sensitivity_is_a_table(pruned: tuple[PruneOptions, Path], tmp_path: Path) -> None:
    options, folder = pruned
    report = json.loads((folder / "report.json").read_text())
    bench = Workbench(options, tmp_path, load_checkpoint(options.training.weights))
    table = [
        Sensitivity(EVIL, 8, 0.25, 0.304), Sensitivity(EVIL, 8, 0.5, 0.101), Sensitivity("model.1.conv", 16, 0.25, 0.2),
    ]  # fmt: skip
    made = [Produced(cut["target"], {}, cut) for cut in report["cuts"]]
    html = render(pruning_page(bench, report["rows"], made, table))
    assert "<h2>Sensitivity</h2>" in html and "25% gone" in html and "50% gone" in html
    assert '<td class="" data-value="0.304">30.4</td>' in html and '<td class="">-</td>' in html
    assert EVIL not in html and "&lt;script&gt;" in html


def test_a_run_that_pruned_nothing(pruned: tuple[PruneOptions, Path], tmp_path: Path) -> None:
    options, folder = pruned
    rows = json.loads((folder / "report.json").read_text())["rows"][:1]
    bench = Workbench(options, tmp_path, load_checkpoint(options.training.weights))
    assert pruning_page(bench, rows, [], []).answer == "Nothing was pruned."
