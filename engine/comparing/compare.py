"""The whole of compare.py: trains what is missing, evaluates every model in one process, and reports."""

from __future__ import annotations

from pathlib import Path

from engine.comparing.experiment import Experiment, check_files
from engine.comparing.runs import finished_runs, train_all
from utils.logging import LOGGER
from utils.paths import run_path
from utils.running.folders import output_folder
from utils.running.processes import advise


def run_experiment(
    experiment: Experiment, project: str, report_only: bool = False, jobs: int = 1, threads: int | None = None
) -> Path:
    """Trains, evaluates, reports.

    Args:
        experiment: what is compared.
        project: folder of the experiments.
        report_only: report on what is trained already.
        jobs: trainings side by side.
        threads: of each training.

    Returns:
        The experiment's folder, with report.html, report.md, report.json and pictures/.

    Raises:
        UserError: a training failed, or the experiment is already running.
    """
    from engine.comparing.evaluation import evaluate_runs
    from engine.comparing.findings import conclude
    from engine.comparing.page import comparison_page
    from engine.comparing.pictures import draw_pictures
    from engine.comparing.report import write_report
    from engine.reporting.page import write_page

    check_files(experiment)
    path = run_path(project, experiment.name)
    with output_folder(path, exist_ok=True) as folder:
        try:
            if report_only:
                runs = finished_runs(experiment, folder)
            else:
                runs = train_all(experiment, folder, jobs, threads)
            evaluation = evaluate_runs(experiment, runs)
            resampled = {key: each.resampled for key, each in evaluation.measured.items()}
            findings = conclude(experiment, evaluation.rows, resampled)
            text = write_report(experiment, findings, evaluation.rows, folder)
            page = write_page(comparison_page(experiment, findings, evaluation), folder / "report.html")
            pictures = draw_pictures(experiment, runs, folder) if experiment.pictures else None
        except BaseException as error:
            advise(error, "the same command goes on from here")
            raise
    LOGGER.info("\n" + text)
    LOGGER.info(f"report: {page} (and report.md, report.json)")
    if pictures:
        LOGGER.info(f"pictures: {pictures}")
    return folder
