"""Trains teacher, baseline and distilled students of an experiment file, and prints what distillation is worth:
`python compare.py --experiment experiments/demo.yaml`.
"""

from __future__ import annotations

import argparse

from utils.running.cli import MOST_PROCESSES, CommandParser, check_range, run_command


def main() -> None:
    """Parses the flags and runs the experiment."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--experiment", default="experiments/demo.yaml", help="what is compared with what")
    parser.add_argument(
        "--project", default="runs/compare", help="folder of the experiments; finished trainings in it are used again"
    )
    parser.add_argument("--name", help="another name for the experiment's folder")
    parser.add_argument("--data", help="another data set yaml")
    parser.add_argument("--seeds", type=int, nargs="+", help="other seeds")
    parser.add_argument("--epochs", type=int, help="another length for every arm")
    parser.add_argument("--split", choices=["val", "test"], help="where the final figures come from")
    parser.add_argument("--device", help="cpu, 0, or cuda:0")
    parser.add_argument("--report-only", action="store_true", help="train nothing; report on what is trained already")
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side, each with its part of the threads")
    parser.add_argument("--threads", type=int, help="of each training; the same number gives the same weights on a CPU")
    namespace = parser.parse_args()
    check_range("--jobs", namespace.jobs, 1, MOST_PROCESSES)
    if namespace.threads is not None:
        check_range("--threads", namespace.threads, 1, MOST_PROCESSES)
    from engine.comparing.compare import run_experiment
    from engine.comparing.experiment import load_experiment
    from utils.logging import setup_logging

    setup_logging()
    overrides = vars(namespace).copy()
    path, project = overrides.pop("experiment"), overrides.pop("project")
    rest = {name: overrides.pop(name) for name in ("report_only", "jobs", "threads")}
    run_experiment(load_experiment(path, overrides), project, **rest)


if __name__ == "__main__":
    run_command(main)
