from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.comparing.report import write_report
from tests.unit.engine.comparing.test_experiment import experiment
from tests.unit.engine.comparing.test_summary import row


def test_the_report(tmp_path: Path) -> None:
    rows = [row("teacher", 5, 0.5), row("baseline", 0, 0.30), row("baseline", 4, 0.34)]
    rows += [row("fgd", 0, 0.35), row("fgd", 4, 0.33)]
    text = write_report(experiment(tmp_path), rows, tmp_path)
    table = [line for line in text.splitlines() if line.startswith("| ")]
    lines = {line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]] for line in table}
    assert lines["teacher"][:3] == ["0.5000", "1.0000", "-"], "no small boxes to measure by"
    # mean 0.32, spread 0.02 * sqrt(2); differences 0.05 and -0.01
    assert lines["baseline"][0] == "0.3200 ± 0.0283" and lines["baseline"][-3:] == ["", "", ""]
    assert lines["fgd"][8:] == ["+0.0200 ± 0.0424 (1 of 2 seeds)", "no claim", "11 % (6 to 17)"]
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
    text = write_report(
        experiment(tmp_path, seeds=[0]),
        [row("teacher", 0, 0.5), row("baseline", 0, 0.3), row("fgd", 0, 0.35)],
        tmp_path,
    )
    table = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    assert "±" not in table and "| +0.0500 (1 of 1 seeds) | no claim | 25 % |" in table
