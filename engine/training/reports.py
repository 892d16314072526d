"""What a training leaves to look at: the first batches, the curves, and a closing table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.config.hyp import Hyp
from engine.config.options import TrainOptions
from engine.distilling.shares import found_weights
from engine.runfolder import ResultsTable, RunFolder
from utils.logging import LOGGER
from utils.plots import plot_batch, plot_results

if TYPE_CHECKING:
    from engine.inference.evaluate import EvalResult
    from engine.training.loop import Trainer

NUM_BATCHES = 3


def plot_training_batches(trainer: Trainer, names: Sequence[str]) -> None:
    """Draws the first batches of the first epoch, as the network will see them, into the run folder."""
    loader = trainer.loader
    loader.set_epoch(0)
    for number, batch in enumerate(loader):
        if number == NUM_BATCHES:
            break
        plot_batch(
            batch.images,
            batch.targets,
            trainer.run_folder.path / f"train_batch{number}.jpg",
            names=names,
            paths=batch.paths,
        )


def final_report(run: RunFolder, result: EvalResult, options: TrainOptions, hyp: Hyp) -> None:
    """Draws results.png and prints the best model's figures, weights that shares came to, and where all lies."""
    if not options.noplots:
        plot_results(run.path / "results.csv")
    LOGGER.info(result.table(verbose=len(result.names) <= 30))
    if options.teacher_weights:
        lines = found_weights(ResultsTable(run.path / "results.csv").last_row(), options, hyp)
        if lines:
            LOGGER.info("\n".join(lines))
    LOGGER.info(f"best: {run.best}\nlast: {run.last}\nresults: {run.path}")
