from __future__ import annotations

import csv
import json
from pathlib import Path

import yaml

from engine.compare import mean_and_spread, summarise
from engine.runfolder import ResultsTable, RunFolder


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_term_that_appears_later_gets_its_column(tmp_path: Path) -> None:
    table = ResultsTable(tmp_path / "results.csv")
    table.add({"epoch": 0, "train/box": 0.123456789})
    table.add({"epoch": 1, "train/box": 0.1, "train/kd/fgd/P3": 2.0})
    rows = read(tmp_path / "results.csv")
    assert rows[0] == {"epoch": "0", "train/box": "0.123457", "train/kd/fgd/P3": ""}
    assert rows[1]["train/kd/fgd/P3"] == "2"


def test_resume_drops_rows_of_the_unfinished_epoch(tmp_path: Path) -> None:
    table = ResultsTable(tmp_path / "results.csv")
    for epoch in range(3):
        table.add({"epoch": epoch, "x": float(epoch)})
    again = ResultsTable(tmp_path / "results.csv")
    again.resume(2)
    again.add({"epoch": 2, "x": 9.0})
    assert [row["x"] for row in read(tmp_path / "results.csv")] == ["0", "1", "9"]


def test_folders_count_up(tmp_path: Path) -> None:
    assert [RunFolder.create(str(tmp_path), "exp", False).path.name for _ in range(3)] == ["exp", "exp2", "exp3"]
    assert RunFolder.create(str(tmp_path), "exp", True).path.name == "exp"


def test_manifest_and_yaml(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "exp")
    run.write_yaml("opt.yaml", {"b": (1, 2), "a": {"c": None}})
    run.write_manifest({"seed": 3, "teacher": {"sha256": "ab"}})
    assert yaml.safe_load((run.path / "opt.yaml").read_text()) == {"b": [1, 2], "a": {"c": None}}
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["seed"] == 3
    assert set(manifest["versions"]) >= {"torch", "numpy", "python"}


def test_summary_pairs_the_seeds() -> None:
    keys = ("AP50", "AP75", "AP_small", "AP_medium", "AP_large", "parameters", "gflops", "ms")
    common = dict.fromkeys(keys, 0.0)
    values = {("baseline", 0): 0.30, ("baseline", 1): 0.32, ("distilled", 0): 0.33, ("distilled", 1): 0.33}
    rows = [{"role": role, "seed": seed, "AP": ap, **common} for (role, seed), ap in values.items()]
    baseline, distilled = summarise(rows, "baseline")
    assert "gain" not in baseline
    gain, spread = distilled["gain"]
    assert abs(gain - 0.02) < 1e-12  # (0.03 + 0.01) / 2
    assert abs(spread - 0.0141421356) < 1e-8  # sqrt(((0.01)^2 + (0.01)^2) / 1)
    assert distilled["better_seeds"] == 2
    assert mean_and_spread([0.5]) == (0.5, 0.0)
