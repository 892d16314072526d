"""The whole of compare.py: trains what is missing, evaluates every model in one process, and reports."""

from __future__ import annotations

from pathlib import Path

from engine.comparing.experiment import Experiment, check_files
from engine.comparing.runs import train_all
from utils.logging import LOGGER
from utils.paths import run_path
from utils.running.folders import output_folder
from utils.running.processes import advise


def run_experiment(experiment: Experiment, project: str) -> Path:
    """Trains, evaluates, reports.

    Returns:
        The experiment's folder, with report.md, report.json and pictures/.

    Raises:
        UserError: a training failed, or the experiment is already running.
    """
    from engine.comparing.report import draw_pictures, evaluate_runs, write_report

    check_files(experiment)
    path = run_path(project, experiment.name)
    with output_folder(path, exist_ok=True) as folder:
        try:
            runs = train_all(experiment, folder)
            rows = evaluate_runs(experiment, runs)
            text = write_report(experiment, rows, folder)
            pictures = draw_pictures(experiment, runs, folder) if experiment.pictures else None
        except BaseException as error:
            advise(error, "the same command goes on from here")
            raise
    LOGGER.info("\n" + text)
    LOGGER.info(f"report: {folder / 'report.md'}")
    if pictures:
        LOGGER.info(f"pictures: {pictures}")
    return folder
