"""All models of an experiment measured in one process, on the same images and in turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from checkpoints.checkpoint import load_model
from data.config import DatasetConfig, load_dataset_config
from data.labels import build_index
from data.records import DatasetIndex
from data.synthetic import ensure_dataset
from engine.comparing.experiment import Experiment
from engine.comparing.summary import Run
from engine.inference.class_order import adopt_names
from engine.reporting.measuring import Measured, measure
from models.yolo import Model
from pruning.size import measure_latency
from utils.device import select_device
from utils.logging import LOGGER
from utils.names import distinct_names


@dataclass
class Evaluation:
    """All models of an experiment on its split.

    Attributes:
        rows: one a run: role, seed, weights, AP and its kin (0 to 1), per_class, parameters, gflops at the experiment's
            size, ms an image at batch 1 (median, in turns so that a change of the machine's speed hits all alike).
        measured: by role and seed, what each image contributed.
        models: the first seed's model of each role, BatchNorm folded.
        index: images and labels of the split.
        names: of the classes.
        device: of the models.
    """

    index: DatasetIndex
    names: tuple[str, ...]
    device: torch.device
    rows: list[dict[str, Any]] = field(default_factory=list)
    measured: dict[tuple[str, int], Measured] = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)

    def first(self, role: str) -> Measured:
        """What was measured of a role's first seed."""
        return next(each for (name, _), each in self.measured.items() if name == role)


def evaluate_runs(experiment: Experiment, runs: Sequence[Run]) -> Evaluation:
    """COCO metrics, size and speed of every model, on the experiment's split."""
    device = select_device(experiment.device)
    config = ensure_dataset(load_dataset_config(experiment.data, needs=(experiment.split,)))
    index = build_index(config.split(experiment.split), config.nc, prefix=experiment.split)
    models = [load_run(run, config, device) for run in runs]
    times = measure_latency(models, torch.rand(1, 3, experiment.img_size, experiment.img_size, device=device))
    found = Evaluation(index, tuple(config.names), device)
    settings = (experiment.img_size, experiment.batch_size, experiment.workers)
    for run, model, seconds in zip(runs, models, times):
        LOGGER.info(f"evaluating {run.role}, seed {run.seed}")
        measured = measure(model, index, config.names, device, *settings)
        result, summary = measured.result, model.summary(experiment.img_size)
        metrics = {key.removeprefix("metrics/"): v for key, v in result.as_row().items() if "metrics/" in key}
        row: dict[str, Any] = {"role": run.role, "seed": run.seed, "weights": str(run.weights), **metrics}
        row["per_class"] = dict(zip(distinct_names(config.names), [float(v) for v in result.coco.per_class_ap]))
        row |= {"parameters": summary.parameters, "gflops": summary.gflops, "ms": seconds * 1000}
        found.rows.append(row)
        found.measured[run.role, run.seed] = measured
        found.models.setdefault(run.role, model)
    return found


def load_run(run: Run, config: DatasetConfig, device: torch.device) -> Model:
    """A run's model with its classes in the data set's order."""
    model = load_model(run.weights, device=device, fuse=True)
    return adopt_names(model, config.names, str(config.path), str(run.weights))
