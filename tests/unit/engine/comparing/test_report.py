from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.comparing.experiment import Experiment
from engine.comparing.findings import conclude
from engine.comparing.report import write_report
from engine.runfolder import ResultsTable, RunFolder
from tests.unit.engine.comparing.test_experiment import experiment
from tests.unit.engine.comparing.test_summary import row


def written(found: Experiment, rows: list[dict[str, Any]], folder: Path, **more: Any) -> str:
    return write_report(found, conclude(found, rows, **more), rows, folder)


def table_of(text: str) -> dict[str, list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines}


def test_the_report(tmp_path: Path) -> None:
    rows = [row("teacher", 5, 0.5), row("baseline", 0, 0.30), row("baseline", 4, 0.34)]
    rows += [row("fgd", 0, 0.35), row("fgd", 4, 0.33)]
    text = written(experiment(tmp_path), rows, tmp_path)
    lines = table_of(text)
    assert lines["teacher"][:3] == ["0.5000", "1.0000", "-"], "no small boxes to measure by"
    # mean 0.32, spread 0.02 * sqrt(2); differences 0.05 and -0.01
    assert lines["baseline"][0] == "0.3200 ± 0.0283" and lines["baseline"][-4:] == [""] * 4
    assert lines["fgd"][8:] == ["+0.0200 ± 0.0424 (1 of 2 seeds)", "no claim", "", "11 % (6 to 17)"]
    assert lines["fgd"][5:8] == ["1.000 M", "1.500", "3.2"]
    assert "Too few seeds for a claim: three are the least" in text
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == text + "\n"

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    report = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    assert report["runs"][0]["per_class"] == {"cell": 0.5, "none": None}
    assert report["summary"][2]["difference"]["differences"] == pytest.approx([0.05, -0.01])
    assert report["answer"]["sentence"] in text and report["answer"]["arm"] == "fgd"
    assert report["experiment"]["seeds"] == [0, 4]


def test_one_seed_has_no_spread(tmp_path: Path) -> None:
    rows = [row("teacher", 0, 0.5), row("baseline", 0, 0.3), row("fgd", 0, 0.35)]
    text = written(experiment(tmp_path, seeds=[0]), rows, tmp_path)
    assert "±" not in "\n".join(line for line in text.splitlines() if line.startswith("|"))
    assert table_of(text)["fgd"][8:] == ["+0.0500 (1 of 1 seeds)", "no claim", "", "25 %"]


def test_the_interval_over_images_has_its_own_column(tmp_path: Path) -> None:
    rows = [row("teacher", 0, 0.5)]
    resampled: dict[tuple[str, int], np.ndarray] = {}
    for seed, (first, second) in enumerate([(0.30, 0.35), (0.32, 0.36), (0.31, 0.37)]):
        rows += [row("baseline", seed, first), row("fgd", seed, second)]
        resampled["baseline", seed] = np.linspace(0.2, 0.4, 101)
        resampled["fgd", seed] = np.linspace(0.2, 0.4, 101) + np.linspace(0, 0.1, 101)
    text = written(experiment(tmp_path, seeds=[0, 1, 2]), rows, tmp_path, resampled=resampled)
    # differences 0.05, 0.04, 0.06: 0.05 -+ 0.01 * 2.48414; the images' from 2.5 % to 97.5 % of 0 to 0.1
    assert table_of(text)["fgd"][9:11] == ["+0.0252 to +0.0748", "+0.0025 to +0.0975"]


def test_what_must_be_said_beside_the_answer(tmp_path: Path) -> None:
    rows = []
    for role, values in {"teacher": [0.1, 0.2, 0.3], "baseline": [0.1, 0.3, 0.3], "fgd": [0.1, 0.2, 0.3]}.items():
        run = RunFolder(tmp_path / role)
        table = ResultsTable(run.path / "results.csv")
        for epoch in range(20):
            measured = {9: values[0], 14: values[1], 19: values[2]}
            table.add({"epoch": epoch, "time/epoch": 2.0, "metrics/AP": measured.get(epoch, "")})
        gate = [{"path": "t.pt", "AP": 0.0, "images": 200, "problem": "t.pt is not trained", "forced": role == "fgd"}]
        hardware = {"threads": {"teacher": 8, "baseline": 2, "fgd": 1}[role], "gpus": []}
        run.write_manifest({"gate": gate if role != "teacher" else [], "hardware": hardware})
        rows.append({**row(role, 0, 0.3), "weights": str(run.best)})
    findings = conclude(experiment(tmp_path, seeds=[0]), rows)
    told = "\n".join(findings.warnings)
    assert "Too few seeds (one; three are the least)" in told
    assert "teacher had not converged: the best epoch is among the last" in told
    assert "fgd had not converged (seed 0)" in told and "rose by up to 10.0 points" in told
    assert "baseline had not converged" not in told
    assert "fgd was trained with --force, although the gate refused its teacher. t.pt: t.pt is not trained" in told
    assert "baseline was trained with --force" not in told
    assert "different numbers of threads (1: fgd 0; 2: baseline 0)" in told, "the teacher's is its own affair"
    assert findings.facts["fgd", 0].seconds == 40
