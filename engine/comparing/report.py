"""The report of a comparison as text and as data: report.md and report.json."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.comparing.experiment import Experiment
from engine.comparing.findings import Findings
from engine.comparing.summary import enough_seeds, power_note
from engine.runfolder import environment
from utils.paths import replacing

COLUMNS = (
    "model", "AP", "AP50", "APs", "APm", "APl", "parameters", "GFLOPs", "ms/image", "difference in AP",
    "95 % interval over seeds", "95 % interval over images", "share of the gap",
)  # fmt: skip


def write_report(experiment: Experiment, findings: Findings, rows: Sequence[Mapping[str, Any]], folder: Path) -> str:
    """Writes report.md and report.json; returns the former as text."""
    entry = findings.entry
    lines = [
        findings.sentence,
        "",
        subtitle(experiment),
        "",
        *markdown_table(findings.summary),
        "",
        "Means over the seeds ± sample standard deviation. Differences and shares are those of AP to "
        f"{findings.baseline}, seed by seed. The interval over seeds, by the t distribution, says how sure the "
        "difference is; that over images (bootstrap) how much it depends on the images of the split, with these very "
        "models. In the sentence AP is in points: +1.0 is +0.0100 in the table.",
        *(f"- Warning: {line}" for line in findings.warnings),
        *(f"- {line}" for line in findings.remarks),
    ]
    text = "\n".join(lines)
    with replacing(folder / "report.md") as stream:
        stream.write(text + "\n")
    content = {
        "experiment": asdict(experiment),
        "environment": environment(),
        "answer": {
            "arm": entry["role"] if entry else None, "sentence": findings.sentence, "warnings": findings.warnings,
            "notes": findings.remarks,
        },
        "power": power_note(entry["difference"]) if entry and len(entry["difference"]["seeds"]) > 1 else None,
        "summary": findings.summary,
        "runs": rows,
    }  # fmt: skip
    with replacing(folder / "report.json") as stream:
        json.dump(_valid_json(content), stream, indent=2)
    return text


def subtitle(experiment: Experiment) -> str:
    """What was compared on what."""
    return (
        f"{experiment.name}: {experiment.data}, {experiment.split} split, {experiment.img_size} px, "
        f"{_lengths(experiment)}, seeds {', '.join(map(str, experiment.seeds))}"
    )


def markdown_table(summary: Sequence[Mapping[str, Any]]) -> list[str]:
    """The summary as a table in Markdown: one row a role, and one for what distillation adds over inheritance."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for entry in summary:
        cells = [entry["role"] + ("" if entry.get("equal_epochs", True) else f" ({entry['epochs']} epochs)")]
        cells += [_figure(entry[k], entry["runs"]) for k in ("AP", "AP50", "AP_small", "AP_medium", "AP_large")]
        cells += [f"{entry['parameters'] / 1e6:.3f} M", f"{entry['gflops']:.3f}", f"{entry['ms']:.1f}"]
        cells += [*_difference_cells(entry.get("difference"), entry.get("equal_epochs", True)), _share_cell(entry)]
        lines.append("| " + " | ".join(cells) + " |")
    for entry in summary:
        if entry.get("added"):
            name = f"{entry['role']} minus {entry['added']['to']}"
            cells = [name, *[""] * 8, *_difference_cells(entry["added"], entry["equal_epochs"]), ""]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def _difference_cells(difference: Mapping[str, Any] | None, claimable: bool) -> list[str]:
    """A paired difference, its interval over seeds, and that over images."""
    if not difference:
        return ["", "", ""]
    number = len(difference["seeds"])
    figure = _figure((difference["mean"], difference["spread"]), number, "+.4f")
    better = f"{figure} ({difference['better']} of {number} seeds)"
    over_images = _range(difference["over_images"])
    over_seeds = _range(difference["interval"]) if claimable and enough_seeds(difference) else "no claim"
    return [better, over_seeds, over_images]


def _range(interval: Sequence[float] | None) -> str:
    return f"{interval[0]:+.4f} to {interval[1]:+.4f}" if interval else ""


def _share_cell(entry: Mapping[str, Any]) -> str:
    share = entry.get("share")
    if not share:
        return ""
    text = f"{100 * share['mean']:.0f} %"
    several = len(entry["difference"]["seeds"]) > 1
    return text + (f" ({100 * share['least']:.0f} to {100 * share['most']:.0f})" if several else "")


def _lengths(experiment: Experiment) -> str:
    """How long the arms are trained."""
    own = [f"{name} {arm['epochs']}" for name, arm in experiment.arms.items() if "epochs" in arm]
    return f"{experiment.epochs} epochs an arm" + (f" ({', '.join(own)})" if own else "")


def _valid_json(value: Any) -> Any:
    """`value` with null for the figures that there were no boxes to measure by, which are NaN."""
    if isinstance(value, Mapping):
        return {str(key): _valid_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_valid_json(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _figure(mean_and_spread: tuple[float, float], runs: int, form: str = ".4f") -> str:
    mean, spread = mean_and_spread
    if math.isnan(mean):
        return "-"  # no object of that kind in the split
    return f"{mean:{form}}" if runs < 2 else f"{mean:{form}} ± {spread:.4f}"
