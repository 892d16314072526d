"""Shares of the detection loss's gradient through the real command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from distill import LOSSES
from tests.integration.conftest import checked
from tests.integration.test_training import kill_and_resume, rows_of, weights_of

SHARES = {name: 0.3 for name in LOSSES if name not in ("ld", "output")} | {"output": {"box": 0.2, "obj": 0.1}}


@pytest.fixture
def recipe(tiny: Path, tmp_path: Path) -> Path:
    """Every loss that anchor heads have, constant over the training."""
    hyp = yaml.safe_load((tiny / "distill.yaml").read_text())
    hyp |= {"kd_losses": {name: {"share": share} for name, share in SHARES.items()}, "kd_schedule": {}}
    (tmp_path / "shares.yaml").write_text(yaml.safe_dump(hyp))
    return tmp_path / "shares.yaml"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_and_resumed_equals_uninterrupted(
    tiny: Path, base: list[str], teacher: Path, recipe: Path, tmp_path: Path
) -> None:
    """Seven batches an epoch: the beginning is over in the third, and the run is killed in the fifth."""
    words = [*base, "--project", tmp_path, "--cfg", tiny / "small.yaml", "--hyp", recipe, "--teacher-weights", teacher]
    words += ["--batch-size", 4]
    whole, _ = kill_and_resume(words, tmp_path, epochs=5, epochs_done=4)
    names = [f"kd/{name}" for name in SHARES if name != "output"] + ["kd/output/box", "kd/output/obj"]
    for row in rows_of(whole)[2:]:
        for name in names:
            asked = {"kd/output/box": 0.2, "kd/output/obj": 0.1}.get(name, 0.3)
            assert asked / 1.5 < float(row[f"share/{name}"]) < 1.5 * asked, (row["epoch"], name)
            assert float(row[f"factor/{name}"]) > 0


def test_the_weights_that_were_found_are_printed_and_can_be_trained_with(
    tiny: Path, base: list[str], teacher: Path, tmp_path: Path
) -> None:
    hyp = yaml.safe_load((tiny / "distill.yaml").read_text())
    hyp["kd_losses"] = {"fgd": {"share": 0.4, "temperature": 0.5}, "output": {"share": {"box": 0.2, "obj": 0.1}}}
    (tmp_path / "shares.yaml").write_text(yaml.safe_dump(hyp))
    words = [*base, "--project", tmp_path, "--cfg", tiny / "small.yaml", "--teacher-weights", teacher, "--epochs", 1]
    out = checked("train_distill.py", *words, "--hyp", tmp_path / "shares.yaml", "--name", "shares").stdout
    lines = out[out.index("weights that the shares came to") :].splitlines()[1:]
    end = next(i for i, line in enumerate(lines) if not line.startswith(("kd_losses:", "  ")))
    found = yaml.safe_load("\n".join(lines[:end]))
    assert found["kd_losses"]["fgd"]["temperature"] == 0.5
    assert found["kd_losses"]["output"]["weight"].keys() == {"box", "obj"}
    (tmp_path / "weights.yaml").write_text(yaml.safe_dump(hyp | found))
    checked("train_distill.py", *words, "--hyp", tmp_path / "weights.yaml", "--name", "weights")
    assert "factor/kd/fgd" not in rows_of(tmp_path / "weights")[0]


@pytest.mark.slow
def test_two_processes_find_the_same_weights(
    tiny: Path, base: list[str], teacher: Path, recipe: Path, tmp_path: Path
) -> None:
    words = [
        *base,
        "--project",
        tmp_path,
        "--cfg",
        tiny / "small.yaml",
        "--hyp",
        recipe,
        "--epochs",
        2,
        "--name",
        "two",
    ]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    checked(*torchrun, "train_distill.py", *words, "--teacher-weights", teacher)
    row = rows_of(tmp_path / "two")[-1]
    assert 0.2 < float(row["share/kd/cwd"]) < 0.45
    assert all(torch.isfinite(v).all() for v in weights_of(tmp_path / "two").values() if v.is_floating_point())
