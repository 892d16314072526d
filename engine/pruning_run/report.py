"""What prune.py leaves to read: report.html, report.md, report.json, and pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from checkpoints.checkpoint import load_checkpoint, load_model
from engine.pruning_run.bench import Workbench
from engine.pruning_run.page import name_of, pruning_page
from engine.reporting.matching import percentile_interval
from engine.reporting.page import write_page
from engine.reporting.statistics import LEVEL
from engine.runfolder import EventWriter, environment
from pruning import IMPORTANCES, measure_latency
from pruning.pruner import make_importance, prunable_groups
from pruning.sensitivity import Sensitivity, sensitivity
from pruning.sparsity import batchnorm_scales, describe_scales
from utils.files import write_json
from utils.logging import LOGGER, progress
from utils.paths import replacing
from utils.plots import never_fatal, open_figure
from utils.text import markdown_table

if TYPE_CHECKING:
    from engine.pruning_run.bench import Produced

BATCHES = (1, 16)
ROUNDS = {1: 40, 16: 8}
HEADER = ("model", "AP", "AP50", "parameters", "GFLOPs", "file", "ms batch 1", "ms batch 16", "AP lost", "faster")


def report(bench: Workbench, produced: Sequence[Produced]) -> None:
    """Evaluates and times the model before pruning and all that was made of it, side by side, and writes the report."""
    roles: list[tuple[str, float | None, Path]] = [("full", None, Path(bench.options.training.weights))]
    for made in produced:
        roles += [(role, made.target, path) for role, path in made.weights.items() if role != "sparse"]
        if "sparse" in made.weights and all(role != "sparse" for role, *_ in roles):
            roles.insert(1, ("sparse", None, made.weights["sparse"]))
    rows = _figures(bench, roles)
    table = _sensitivity(bench) if bench.options.sensitivity else []
    content = {
        "options": bench.options.to_dict(),
        "environment": environment(),
        "rows": rows,
        "cuts": [{"target": made.target, **made.cut} for made in produced],
        "sensitivity": [asdict(row) for row in table],
    }
    write_json(bench.folder / "report.json", content)
    text = "\n".join([*_overview(bench, rows), *_cuts(bench, produced), *_sensitivity_lines(table)])
    with replacing(bench.folder / "report.md") as stream:
        stream.write(text + "\n")
    page = write_page(pruning_page(bench, rows, produced, table), bench.folder / "report.html")
    if not bench.options.training.noplots:
        plot_tradeoff(rows, bench.folder / "tradeoff.png")
    LOGGER.info("\n" + "\n".join(_table(rows)))
    LOGGER.info(f"report: {page} (and report.md, report.json)")


def _figures(bench: Workbench, roles: Sequence[tuple[str, float | None, Path]]) -> list[dict[str, Any]]:
    """One row a model: role, target, weights, AP, AP50, parameters, gflops, bytes, ms at each batch size, and
    change_over_images, the interval of the change of AP when the images are drawn anew (None for the first).
    """
    models = [bench.model(path) for _, _, path in roles]
    sizes = [model.summary(bench.img_size) for model in models]
    for model in models:
        model.fuse()
    rows: list[dict[str, Any]] = []
    before: np.ndarray | None = None
    for (role, target, path), model, size in zip(roles, models, sizes):
        found = bench.measure(model)
        result, draws = found.result, found.resampled
        before = draws if before is None else before
        row: dict[str, Any] = {"role": role, "target": target, "weights": str(path), "parameters": size.parameters}
        row |= {"AP": float(result.coco.ap), "AP50": float(result.coco.ap50), "gflops": size.gflops}
        row["change_over_images"] = percentile_interval(draws - before, LEVEL) if rows else None
        rows.append(row | {"bytes": path.stat().st_size})
    for batch in BATCHES:
        seconds = measure_latency(models, torch.rand_like(bench.example(batch)), ROUNDS[batch])
        for row, one in zip(rows, seconds):
            row[f"ms_batch{batch}"] = 1000 * one
    return rows


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The overview as a Markdown table."""
    table, full = [], rows[0]
    for row in rows:
        cells = [name_of(row), f"{row['AP']:.4f}", f"{row['AP50']:.4f}", f"{row['parameters'] / 1e6:.3f} M"]
        cells += [f"{row['gflops']:.3f}", f"{row['bytes'] / 1e6:.2f} MB"]
        cells += [f"{row[f'ms_batch{batch}']:.1f}" for batch in BATCHES]
        if row is not full:
            gains = (f"{full[f'ms_batch{batch}'] / row[f'ms_batch{batch}']:.2f}x" for batch in BATCHES)
            cells += [f"{full['AP'] - row['AP']:+.4f}", ", ".join(gains)]
        else:
            cells += ["", ""]
        table.append(cells)
    return markdown_table(HEADER, table)


def _overview(bench: Workbench, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    options = bench.options
    settings, targets = options.settings, ", ".join(f"{target:.0%}" for target in options.targets)
    yield f"# Pruning {options.training.weights}"
    yield ""
    yield (
        f"{options.training.data}, {options.split} split, {bench.img_size} pixels. Target: "
        f"{targets} of the {settings.by} removed, by {settings.importance} importance, {settings.scope} ranking "
        f"(normalised by {settings.normalize}), widths in multiples of {settings.round_to}, at least "
        f"{settings.min_keep:.0%} of each layer kept, {options.steps} cut(s)."
    )
    yield ""
    yield from _table(rows)
    yield ""
    yield (
        "AP is COCO's. Times are medians of forward passes with BatchNorm folded, all models in turns in one process "
        f"on {bench.device}, {torch.get_num_threads()} thread(s). `pruned` is the model right after the cut, before "
        "any training; that its AP is low is expected. `finetuned` and `distilled` "
        + (
            f"both start from it, for {options.epochs_of('finetune')} and {options.epochs_of('distill')} epochs."
            if options.distill_from == "pruned"
            else f"are trained one after the other, for {options.epochs_of('finetune')} and "
            f"{options.epochs_of('distill')} epochs."
        )
    )


def _cuts(bench: Workbench, produced: Sequence[Produced]) -> Iterator[str]:
    for made in produced:
        cut = made.cut
        yield ""
        yield f"## Target {made.target:g}"
        yield ""
        yield (
            f"{cut['share']:.1%} of the {bench.options.settings.by} removed in the last cut. "
            f"AP {cut['AP_as_cut']:.4f} as cut, {cut['AP_statistics_estimated']:.4f} with BatchNorm's statistics "
            f"estimated again on {bench.options.batches} batches of training images; the better one was kept."
        )
        yield ""
        rows = []
        for layer in cut["layers"]:
            before, after = layer["before"], layer["after"]
            rows.append([layer["name"], *before, *after, f"{after[1] / before[1]:.0%}", layer["kept_for"]])
        yield from markdown_table(("convolution", "in", "out", "in after", "out after", "kept", ""), rows)


def _sensitivity(bench: Workbench) -> list[Sensitivity]:
    """AP with a share of one layer's channels gone, for every layer."""
    options = bench.options
    model = bench.model(options.training.weights)
    groups = prunable_groups(model, bench.example(), options.settings.protect)
    data = (bench.batches, bench.loss_of(model)) if IMPORTANCES[options.settings.importance].needs_data else ()
    measure = make_importance(model, options.settings, *data)
    rows = sensitivity(model, groups, measure, bench.ap)
    total = 3 * sum(not group.reason for group in groups)
    return list(progress(rows, total=total, desc="sensitivity"))


def _sensitivity_lines(table: Sequence[Sensitivity]) -> Iterator[str]:
    if not table:
        return
    shares = sorted({row.share for row in table})
    values: dict[tuple[str, int], dict[float, float]] = {}
    for row in table:
        values.setdefault((row.layer, row.channels), {})[row.share] = row.value
    yield ""
    yield "## Sensitivity: AP with a share of one layer (and all that is tied to it) gone, without repair"
    yield ""
    rows = [[*layer, *(f"{of.get(share, math.nan):.4f}" for share in shares)] for layer, of in values.items()]
    yield from markdown_table(["layer", "channels", *(f"{share:.0%} gone" for share in shares)], rows)


def show_scales(bench: Workbench, before: Path, after: Path, folder: Path) -> None:
    """A picture and TensorBoard histograms of BatchNorm's scales before and after a sparse training."""
    scales = {}
    for name, path in (("before", before), ("after", after)):
        scales[name] = batchnorm_scales(load_model(path, fuse=False))
        LOGGER.info(f"BatchNorm {name} the sparse training: {describe_scales(scales[name])}")
    events = EventWriter(folder)
    if events.writer:
        for step, name in ((0, "before"), (load_checkpoint(after).epoch + 1, "after")):
            events.writer.add_histogram("scales/batchnorm", scales[name].numpy(), step)
    events.close()
    if not bench.options.training.noplots:
        plot_scales(scales, folder / "scales.png")


@never_fatal
def plot_scales(scales: Mapping[str, torch.Tensor], path: Path) -> None:
    """Histograms of BatchNorm's scales over each other."""
    with open_figure(path, 1, 1, (7, 4)) as axes:
        top = max(float(values.max()) for values in scales.values())
        for name, values in scales.items():
            axes[0, 0].hist(values.numpy(), bins=100, range=(0, top), alpha=0.6, label=name)
        axes[0, 0].set(xlabel="absolute BatchNorm scale", ylabel="channels")
        axes[0, 0].legend(frameon=False)


@never_fatal
def plot_tradeoff(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """AP over latency at batch 1 and over GFLOPs: a line a role, a point a target."""
    with open_figure(path, 1, 2, (5.5, 4)) as axes:
        for axis, key, label in zip(axes[0], ("ms_batch1", "gflops"), ("ms an image, batch 1", "GFLOPs")):
            for role in dict.fromkeys(row["role"] for row in rows):
                points = sorted((row[key], row["AP"]) for row in rows if row["role"] == role)
                axis.plot(*zip(*points), marker="o", label=role)
            axis.set(xlabel=label, ylabel="AP", xlim=(0, None))
        axes[0, 0].legend(frameon=False)
