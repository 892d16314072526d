"""What a training leaves to look at: the first batches, the curves, and a closing table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.config.options import TrainOptions
from engine.runfolder import RunFolder
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


def final_report(run: RunFolder, result: EvalResult, options: TrainOptions) -> None:
    """Draws results.png and prints the best model's figures and where they lie."""
    if not options.noplots:
        plot_results(run.path / "results.csv")
    LOGGER.info(result.table(verbose=len(result.names) <= 30))
    LOGGER.info(f"best: {run.best}\nlast: {run.last}\nresults: {run.path}")
