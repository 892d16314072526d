"""The parts of a comparison's page that show: curves, efficiency, classes, precision, and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from distill import DistillError
from engine.comparing.evaluation import Evaluation
from engine.comparing.experiment import Experiment
from engine.comparing.findings import Findings
from engine.comparing.summary import TEACHER
from engine.reporting.charts import Interval, Series, bar_charts, line_chart, scatter_chart
from engine.reporting.gallery import attention_row, count_missed, picture_row, telling_images
from engine.reporting.matching import RECALLS
from engine.reporting.page import Chart, Charts, Pictures, Section
from engine.reporting.statistics import paired

MOST_CLASSES = 24
"""Of the chart of classes."""
MOST_ATTENTIONS = 4
MOST_GALLERY = 12


def curves_section(findings: Findings, colors: Mapping[str, int]) -> Section:
    """Validation AP by epoch: the mean of the seeds, and from the least to the most of them."""
    series = []
    for role in dict.fromkeys(role for role, _ in findings.facts):
        curves = [dict(zip(*each.curve)) for (name, _), each in findings.facts.items() if name == role]
        epochs = sorted(set.intersection(*(set(curve) for curve in curves)))
        if epochs:
            values = 100 * np.array([[curve[epoch] for epoch in epochs] for curve in curves])
            low, high = (values.min(0), values.max(0)) if len(values) > 1 else ((), ())
            series.append(Series(role, colors[role], epochs, values.mean(0), low, high, dashed=role == TEACHER))
    if not series:
        return Section("Learning curves", "", [])
    arms = [each for each in series if each.name != TEACHER]
    legend = [(each.name, each.color) for each in series]
    caption = "AP on the validation split by epoch; bands reach from the lowest to the highest seed."
    charts = [
        Chart(line_chart(arms or series, "Learning curves", "epoch", "AP"), caption, legend[-len(arms or series) :])
    ]
    if arms and len(series) > len(arms):
        charts.append(
            Chart(line_chart(series, "With the teacher", "epoch", "AP"), "The same with the teacher.", legend)
        )
    return Section("Learning curves", "", [Charts(charts)])


def efficiency_section(findings: Findings, colors: Mapping[str, int]) -> Section:
    """AP over measured latency and over GFLOPs."""
    charts = []
    for fact, label in (("ms", "ms an image, batch 1"), ("gflops", "GFLOPs an image")):
        series = []
        for entry in findings.summary:
            mean, spread = (100 * value for value in entry["AP"])
            bounds = ([mean - spread], [mean + spread]) if entry["runs"] > 1 else ((), ())
            series.append(Series(entry["role"], colors[entry["role"]], [entry[fact]], [mean], *bounds))
        legend = [(each.name, each.color) for each in series]
        caption = f"AP over {label}; whiskers are a standard deviation over the seeds."
        charts.append(Chart(scatter_chart(series, f"AP over {label}", label, "AP"), caption, legend))
    return Section("Accuracy against cost", "", [Charts(charts)])


def per_class_section(findings: Findings, evaluation: Evaluation, colors: Mapping[str, int]) -> Section:
    """What each class gains, from the baseline to the arm of the sentence."""
    title = "Change by class"
    if not findings.entry:
        return Section(title, "", [])
    role, changes = findings.entry["role"], []
    by_role = {
        name: {r["seed"]: r["per_class"] for r in evaluation.rows if r["role"] == name}
        for name in (role, findings.baseline)
    }
    for name in next(iter(by_role[role].values())):
        first, second = ({seed: own[name] for seed, own in by_role[each].items()} for each in (role, findings.baseline))
        found = paired(first, second)
        if found:
            bounds = (100 * min(found.differences), 100 * max(found.differences)) if len(found.seeds) > 1 else None
            changes.append(Interval(name, colors[role], 100 * found.mean, bounds))
    if not changes:
        return Section(title, "", [])
    shown = sorted(changes, key=lambda row: -abs(row.value))[:MOST_CLASSES]
    shown.sort(key=lambda row: -row.value)
    more = f" The {len(shown)} classes of {len(changes)} that change most." if len(shown) < len(changes) else ""
    caption = (
        f"AP of {role} minus {findings.baseline} in points; whiskers reach from the lowest seed to the highest.{more}"
    )
    bars = bar_charts(shown, title, "points of AP")
    charts = [Chart(svg, caption if number == 0 else "") for number, svg in enumerate(bars)]
    return Section(title, "A class has fewer boxes than the whole, so its change is less sure.", [Charts(charts)])


def precision_section(findings: Findings, evaluation: Evaluation, colors: Mapping[str, int]) -> Section:
    """Precision over recall, the mean of the seeds."""
    series = []
    for role in dict.fromkeys(name for name, _ in evaluation.measured):
        curves = [each.curve for (name, _), each in evaluation.measured.items() if name == role]
        series.append(
            Series(role, colors[role], RECALLS.tolist(), np.mean(curves, axis=0).tolist(), dashed=role == TEACHER)
        )
    legend = [(each.name, each.color) for each in series]
    caption = "Precision over recall at IoU 0.5, mean over the classes and the seeds."
    return Section(
        "Precision and recall",
        "",
        [Charts([Chart(line_chart(series, "Precision over recall", "recall", "precision"), caption, legend)])],
    )


def gallery_section(experiment: Experiment, findings: Findings, evaluation: Evaluation) -> Section:
    """Images with boxes that the teacher finds and the baseline misses, before and after."""
    title = "What the teacher finds and the baseline misses"
    roles = _shown_roles(findings)
    if not experiment.pictures or TEACHER not in evaluation.models:
        return Section(title, "", [])
    measured = {role: evaluation.first(role) for role in roles}
    teacher, baseline = measured[TEACHER], measured[findings.baseline]
    rows = [
        picture_row(evaluation.index.records[place], place, measured, evaluation.names)
        for place in telling_images(teacher, baseline, min(experiment.pictures, MOST_GALLERY))
    ]
    counts = {role: count_missed(teacher, each) for role, each in measured.items() if role != TEACHER}
    text = "; ".join(
        f"{role} misses {lost} boxes that the teacher finds, and finds {won} that it misses"
        for role, (lost, won) in counts.items()
    )
    text = (
        f"Of all labelled boxes of the split, {text}. The images are those with most boxes that the teacher finds and "
        f"{findings.baseline} misses; no other model has a say in the choice. Green: right, orange: wrong, red: "
        "missed. Each model at the confidence where its F1 is highest; first seed of each."
    )
    return Section(title, text, [Pictures([row for row in rows if row])] if any(rows) else [])


def attention_section(experiment: Experiment, findings: Findings, evaluation: Evaluation) -> Section:
    """Where teacher, baseline and student look, on the first images of the gallery."""
    title = "Attention"
    models = {role: evaluation.models[role] for role in _shown_roles(findings) if role in evaluation.models}
    if not experiment.pictures or TEACHER not in models:
        return Section(title, "", [])
    teacher, baseline = evaluation.first(TEACHER), evaluation.first(findings.baseline)
    places = telling_images(teacher, baseline, MOST_ATTENTIONS)
    try:
        rows = [
            attention_row(evaluation.index.records[place], models, experiment.img_size, evaluation.device)
            for place in places
        ]
    except DistillError:  # a network whose head does not say what feeds it
        return Section(title, "", [])
    text = (
        "The mean over channels of the squared features at the head's inputs, each level scaled to its own range, and "
        "the levels averaged: where a network is active, not why. Bright is much. First seed of each."
    )
    return Section(title, text if any(rows) else "", [Pictures([row for row in rows if row])] if any(rows) else [])


def _shown_roles(findings: Findings) -> Sequence[str]:
    """Teacher, baseline, the arm that inherits alone, and the arm of the sentence."""
    entry = findings.entry
    middle = [entry["added"]["to"]] if entry and entry.get("added") else []
    return list(dict.fromkeys([TEACHER, findings.baseline, *middle, *([entry["role"]] if entry else [])]))
