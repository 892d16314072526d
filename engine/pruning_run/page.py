"""The report of prune.py as a page: what the cut cost and what it brought, curves, widths of the layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.pruning_run.bench import Produced, Workbench
from engine.reporting.charts import Interval, Series, bar_charts, line_chart, scatter_chart
from engine.reporting.page import Cell, Chart, Charts, Listing, Page, Section, Table
from engine.reporting.runs import read_run
from engine.runfolder import environment
from pruning.sensitivity import Sensitivity
from utils.text import printable

COLUMNS = (
    ("model", "before pruning, and what was made of it"), ("AP", "COCO's AP in points"), ("AP50", "AP at IoU 0.5"),
    ("change of AP", "to the model before pruning, in points"),
    ("95 % over images", "interval of the change over images, bootstrapped: the same two models on other images"),
    ("parameters", "millions"), ("GFLOPs", "10^9 operations an image"), ("file", "megabytes"),
    ("ms, batch 1", "measured in turns, median"), ("ms, batch 16", "measured in turns, median"),
    ("faster, batch 1", "than the model before pruning"),
)  # fmt: skip
TRAINED = ("sparse", "finetuned", "distilled")
TABLE_TEXT = (
    "A single run of each: the interval over images says what these very models would do on other images of the kind, "
    "not what another training would give. A click on a head sorts."
)
MOST_ROWS = 40
"""Of the chart of widths."""


def pruning_page(
    bench: Workbench, rows: Sequence[Mapping[str, Any]], produced: Sequence[Produced], table: Sequence[Sensitivity]
) -> Page:
    """The page of a pruning.

    Args:
        bench: of the run.
        rows: of the models, the one before pruning first.
        produced: the models of each target.
        table: of the sensitivity; may be empty.
    """
    options, full = bench.options, rows[0]
    colors = {role: number for number, role in enumerate(dict.fromkeys(row["role"] for row in rows))}
    sections = [
        Section("Models", TABLE_TEXT, [_table(rows, colors)]),
        _tradeoff(rows, colors),
        _curves(rows, colors),
        *_widths(bench, produced),
        _sensitivity(table),
        _repeat(rows),
    ]
    final = rows[-1]
    about = environment()
    return Page(
        title=printable(f"Pruning: {Path(options.training.weights).name}"),
        subtitle=f"{options.training.data}, {options.split} split, {bench.img_size} px; {_settings(bench)}",
        answer=_answer(full, final),
        figures=list(_tiles(full, final)),
        remarks=["One run of each model: what pruning costs on average, other seeds would show."],
        sections=sections,
        footer=f"{about['command']} · {about['started']} · torch {about['versions']['torch']}",
    )


def _settings(bench: Workbench) -> str:
    settings = bench.options.settings
    targets = ", ".join(f"{target:.0%}" for target in bench.options.targets)
    return f"{targets} of the {settings.by} removed by {settings.importance} importance, {settings.scope} ranking"


def name_of(row: Mapping[str, Any]) -> str:
    """A model's name in the tables: its role, with the target."""
    return str(row["role"]) if row["target"] is None else f"{row['role']} ({row['target']:g})"


def _answer(full: Mapping[str, Any], final: Mapping[str, Any]) -> str:
    if final is full:
        return "Nothing was pruned."
    fewer = 1 - final["parameters"] / full["parameters"]
    faster = full["ms_batch1"] / final["ms_batch1"]
    change = 100 * (final["AP"] - full["AP"])
    return (
        f"{name_of(final).capitalize()}: {100 * fewer:.0f} % fewer parameters, {faster:.1f} times as fast at batch 1, "
        f"AP {100 * final['AP']:.1f} after {100 * full['AP']:.1f} before ({change:+.1f})."
    )


def _tiles(full: Mapping[str, Any], final: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield f"{100 * final['AP']:.1f}", f"AP, after {100 * full['AP']:.1f} before"
    yield f"{final['parameters'] / 1e6:.2f} M", f"parameters, after {full['parameters'] / 1e6:.2f} M"
    yield f"{final['gflops']:.2f}", f"GFLOPs, after {full['gflops']:.2f}"
    yield f"{final['ms_batch1']:.1f} ms", f"an image at batch 1, after {full['ms_batch1']:.1f} ms"


def _table(rows: Sequence[Mapping[str, Any]], colors: Mapping[str, int]) -> Table:
    full, lines = rows[0], []
    for row in rows:
        line = [
            Cell(name_of(row)),
            Cell(f"{100 * row['AP']:.1f}", row["AP"]),
            Cell(f"{100 * row['AP50']:.1f}", row["AP50"]),
        ]
        if row is full:
            line += [Cell(""), Cell("")]
        else:
            change, bounds = row["AP"] - full["AP"], row["change_over_images"]
            told = f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f}" if bounds else ""
            line += [Cell(f"{100 * change:+.1f}", change), Cell(told, bounds[0] if bounds else None, "quiet")]
        line += [
            Cell(f"{row['parameters'] / 1e6:.2f} M", row["parameters"]),
            Cell(f"{row['gflops']:.2f}", row["gflops"]),
        ]
        line += [Cell(f"{row['bytes'] / 1e6:.1f} MB", row["bytes"])]
        line += [Cell(f"{row[key]:.1f}", row[key]) for key in ("ms_batch1", "ms_batch16")]
        faster = full["ms_batch1"] / row["ms_batch1"]
        lines.append([*line, Cell("" if row is full else f"{faster:.2f}×", faster)])
    return Table(COLUMNS, lines, [colors[row["role"]] for row in rows])


def _tradeoff(rows: Sequence[Mapping[str, Any]], colors: Mapping[str, int]) -> Section:
    charts = []
    for key, label in (("ms_batch1", "ms an image, batch 1"), ("gflops", "GFLOPs an image")):
        series = []
        for role, color in colors.items():
            points = sorted((row[key], 100 * row["AP"]) for row in rows if row["role"] == role)
            series.append(Series(role, color, [x for x, _ in points], [y for _, y in points]))
        legend = list(colors.items())
        charts.append(
            Chart(scatter_chart(series, f"AP over {label}", label, "AP"), f"AP over {label}; a point a target.", legend)
        )
    return Section("Accuracy against cost", "", [Charts(charts)])


def _curves(rows: Sequence[Mapping[str, Any]], colors: Mapping[str, int]) -> Section:
    """Validation AP of the trainings between the cuts."""
    series, legend = [], []
    for row in rows:
        if row["role"] in TRAINED:
            epochs, values = read_run(Path(row["weights"])).curve
            if epochs:
                series.append(Series(name_of(row), colors[row["role"]], epochs, [100 * value for value in values]))
                legend.append((name_of(row), colors[row["role"]]))
    if not series:
        return Section("Learning curves", "", [])
    chart = line_chart(series, "Learning curves", "epoch", "AP")
    return Section(
        "Learning curves", "", [Charts([Chart(chart, "AP on the validation split by epoch of each stage.", legend)])]
    )


def _widths(bench: Workbench, produced: Sequence[Produced]) -> Iterator[Section]:
    """What share of its channels each convolution has lost, a section a target."""
    for made in produced:
        changed = [layer for layer in made.cut["layers"] if layer["before"] != layer["after"]]
        bars = [
            Interval(str(layer["name"]), 2, -100 * (1 - layer["after"][1] / layer["before"][1]))
            for layer in changed[:MOST_ROWS]
        ]
        if not bars:
            continue
        more = (
            f" The first {len(bars)} of {len(changed)} that are narrower; report.md has all."
            if len(changed) > len(bars)
            else ""
        )
        text = (
            f"{made.cut['share']:.1%} of the {bench.options.settings.by} removed in the last cut; AP "
            f"{100 * made.cut['AP_as_cut']:.1f} as cut, {100 * made.cut['AP_statistics_estimated']:.1f} with "
            f"BatchNorm's statistics estimated again.{more}"
        )
        charts = [Chart(svg, "") for svg in bar_charts(bars, "Channels removed", "% of the output channels")]
        yield Section(f"Widths, target {made.target:g}", text, [Charts(charts)])


def _sensitivity(table: Sequence[Sensitivity]) -> Section:
    shares = sorted({row.share for row in table})
    columns = [
        ("layer", ""),
        ("channels", ""),
        *((f"{share:.0%} gone", "AP in points, without repair") for share in shares),
    ]
    values: dict[tuple[str, int], dict[float, float]] = {}
    for row in table:
        values.setdefault((row.layer, row.channels), {})[row.share] = row.value
    rows = []
    for (layer, channels), found in values.items():
        known = [found.get(share) for share in shares]
        cells = [Cell("-") if value is None else Cell(f"{100 * value:.1f}", value) for value in known]
        rows.append([Cell(layer), Cell(str(channels), channels), *cells])
    text = "AP with a share of one layer's channels, and all that is tied to them, gone." if rows else ""
    return Section("Sensitivity", text, [Table(columns, rows)] if rows else [])


def _repeat(rows: Sequence[Mapping[str, Any]]) -> Section:
    parts = [Listing(list(read_run(Path(row["weights"])).lines()), folded=name_of(row)) for row in rows]
    return Section("To repeat it", "Files and commands; hashes are the first digits of sha256.", parts)
