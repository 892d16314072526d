"""The report of a comparison as a page: the answer, the arms, curves, pictures, and what is needed to repeat it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from engine.comparing.evaluation import Evaluation
from engine.comparing.experiment import Experiment
from engine.comparing.findings import Findings
from engine.comparing.report import subtitle
from engine.comparing.summary import TEACHER, enough_seeds, ratio_of_parameters
from engine.comparing.views import (
    attention_section,
    curves_section,
    efficiency_section,
    gallery_section,
    per_class_section,
    precision_section,
)
from engine.comparing.wording import point_range, points
from engine.reporting.charts import Interval, interval_chart
from engine.reporting.page import Cell, Chart, Charts, Listing, Page, Section, Table
from engine.reporting.runs import describe_seconds
from engine.reporting.statistics import GAIN, LOSS
from engine.runfolder import environment
from utils.text import printable

VERDICTS = {GAIN: "gain", LOSS: "loss"}
"""Styles of the page."""
COLUMNS = (
    ("model", "the teacher, then the arms of the experiment"),
    ("AP", "COCO's AP in points, mean over the seeds, with their standard deviation"),
    ("difference", "of AP to the first arm, paired by seed, with the standard deviation"),
    ("95 % over seeds", "interval of the difference over seeds, by the t distribution: how sure it is"),
    ("95 % over images", "interval of the difference over images, bootstrapped: how much it depends on the images"),
    ("of the gap", "share of the gap between the first arm and the teacher that is closed"),
    ("AP50", "AP at IoU 0.5"),
    ("parameters", "millions"),
    ("GFLOPs", "10^9 operations an image"),
    ("ms/image", "measured at batch 1, all models in turns"),
    ("training", "time of all epochs, mean over the seeds"),
)  # fmt: skip


def comparison_page(experiment: Experiment, findings: Findings, evaluation: Evaluation) -> Page:
    """The page of a finished experiment."""
    entry, colors = findings.entry, _colors(findings)
    verdict = ""
    if entry and enough_seeds(entry["difference"]) and entry["equal_epochs"]:
        verdict = VERDICTS.get(entry["difference"]["verdict"], "")
    arms: list[Table | Charts] = [_table(findings, colors), *_forest(findings, colors)]
    sections = [
        Section(
            "Arms",
            TABLE_TEXT.format(baseline=findings.baseline),
            arms,
        ),
        curves_section(findings, colors),
        efficiency_section(findings, colors),
        per_class_section(findings, evaluation, colors),
        precision_section(findings, evaluation, colors),
        gallery_section(experiment, findings, evaluation),
        attention_section(experiment, findings, evaluation),
        _repeat_section(findings),
    ]
    about = environment()
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return Page(
        title=printable(f"Comparison: {experiment.name}"),
        subtitle=subtitle(experiment),
        answer=findings.sentence,
        verdict=verdict,
        figures=list(_figures(findings)),
        warnings=findings.warnings,
        remarks=findings.remarks,
        sections=sections,
        footer=f"{about['command']} · {about['started']} · revision {str(about['git_revision'])[:12]} · {versions}",
    )


TABLE_TEXT = (
    "AP in points (100 is perfect). Differences and shares are to {baseline}, seed by seed. The two intervals answer "
    "two questions: over seeds, would other trainings show it too; over images, would these very models show it on "
    "other images of the kind. Only the first supports a claim about a method. A click on a head sorts."
)


def _colors(findings: Findings) -> dict[str, int]:
    """A colour for each role: grey is the teacher's."""
    return {TEACHER: 0} | {name: number for number, name in enumerate(findings.arms, 1)}


def _figures(findings: Findings) -> Iterator[tuple[str, str]]:
    entry = findings.entry
    if not entry:
        return
    yield points(entry["difference"]["mean"]), f"AP: {entry['role']} over {findings.baseline}"
    if entry.get("share"):
        yield f"{100 * entry['share']['mean']:.0f} %", "of the gap to the teacher closed"
    if entry.get("added"):
        yield points(entry["added"]["mean"]), f"AP of it added by distillation over {entry['added']['to']}"
    ratio = ratio_of_parameters(findings.summary, entry["role"])
    if ratio:
        yield f"{ratio:.1f}×", "fewer parameters than the teacher"
    times = {each["role"]: each["ms"] for each in findings.summary}
    if TEACHER in times:
        yield f"{times[TEACHER] / times[entry['role']]:.1f}×", "as fast as the teacher, measured"


def _table(findings: Findings, colors: Mapping[str, int]) -> Table:
    rows = []
    for entry in findings.summary:
        own = [each.seconds for (role, _), each in findings.facts.items() if role == entry["role"]]
        seconds = float(np.mean(own)) if own else math.nan
        longer = "" if entry.get("equal_epochs", True) else f" ({entry['epochs']} epochs)"
        row = [Cell(entry["role"] + longer), _mean(entry["AP"], entry["runs"])]
        row += [*_difference(entry.get("difference"), entry.get("equal_epochs", True)), _share(entry)]
        row += [_mean(entry["AP50"], entry["runs"])]
        row += [Cell(f"{entry['parameters'] / 1e6:.2f} M", entry["parameters"])]
        row += [Cell(f"{entry['gflops']:.2f}", entry["gflops"]), Cell(f"{entry['ms']:.1f}", entry["ms"])]
        row += [Cell(describe_seconds(seconds), seconds if math.isfinite(seconds) else None)]
        rows.append(row)
    return Table(COLUMNS, rows, [colors[entry["role"]] for entry in findings.summary])


def _mean(figure: tuple[float, float], runs: int) -> Cell:
    mean, spread = figure
    if math.isnan(mean):
        return Cell("-")
    return Cell(f"{100 * mean:.1f}" + (f" ± {100 * spread:.1f}" if runs > 1 else ""), mean)


def _difference(difference: Mapping[str, Any] | None, claimable: bool) -> list[Cell]:
    if not difference:
        return [Cell(""), Cell(""), Cell("")]
    spread = f" ± {100 * difference['spread']:.1f}" if len(difference["seeds"]) > 1 else ""
    interval, style = difference["interval"], "quiet"
    over_seeds = Cell("no claim", None, style)
    if claimable and enough_seeds(difference):
        style = VERDICTS.get(difference["verdict"], "")
        over_seeds = Cell(point_range(interval), interval[0], style)
    over_images = difference["over_images"]
    return [
        Cell(points(difference["mean"]) + spread, difference["mean"], style),
        over_seeds,
        Cell(point_range(over_images), over_images[0], "quiet") if over_images else Cell(""),
    ]


def _share(entry: Mapping[str, Any]) -> Cell:
    share = entry.get("share")
    if not share:
        return Cell("")
    several = len(entry["difference"]["seeds"]) > 1
    spread = f" ({100 * share['least']:.0f}–{100 * share['most']:.0f})" if several else ""
    return Cell(f"{100 * share['mean']:.0f} %{spread}", share["mean"])


def _forest(findings: Findings, colors: Mapping[str, int]) -> list[Charts]:
    rows = []
    for entry in findings.summary:
        found = [(entry["role"], entry.get("difference"))]
        found += [(f"over {entry['added']['to']}", entry["added"])] if entry.get("added") else []
        rows += [_interval(name, colors[entry["role"]], each, entry["equal_epochs"]) for name, each in found if each]
    if not rows:
        return []
    caption = (
        f"Difference of AP to {findings.baseline}; below an arm, in its colour, that to the arm it builds on. Thick: "
        "95 % interval over seeds, where a claim may be made; thin: 95 % interval over images."
    )
    return [Charts([Chart(interval_chart(rows, "Differences with their intervals", "points of AP"), caption)])]


def _interval(name: str, color: int, difference: Mapping[str, Any], claimable: bool) -> Interval:
    def scaled(bounds: Sequence[float] | None) -> tuple[float, float] | None:
        return (100 * bounds[0], 100 * bounds[1]) if bounds else None

    first = difference["interval"] if claimable and enough_seeds(difference) else None
    return Interval(name, color, 100 * difference["mean"], scaled(first), scaled(difference["over_images"]))


def _repeat_section(findings: Findings) -> Section:
    """Commands, versions and hashes, a fold for each training."""
    parts = []
    for (role, seed), facts in findings.facts.items():
        parts.append(Listing(list(facts.lines()), folded=f"{role}, seed {seed}"))
    text = "What was run, on which data, with which files; hashes are the first digits of sha256."
    return Section("To repeat it", text, parts)
