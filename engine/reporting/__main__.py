"""`python -m engine.reporting RUN_FOLDER`: the report of a training, as one file of HTML in its folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from utils.running.cli import MOST_PROCESSES, CommandParser, check_range, run_command


def main() -> None:
    """Parses the command line and writes the reports."""
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = CommandParser(prog="python -m engine.reporting", description=__doc__, formatter_class=formatter)
    parser.add_argument("folder", nargs="+", help="run folder of a training")
    parser.add_argument("--device", default="", help="cpu, 0, or cuda:0; the first GPU when there is one")
    parser.add_argument("--split", choices=["val", "test", "train"], default="val", help="what is measured")
    parser.add_argument("--workers", type=int, help="processes that load images; the training's number")
    namespace = parser.parse_args()
    if namespace.workers is not None:
        check_range("--workers", namespace.workers, 0, MOST_PROCESSES)
    from engine.reporting.single import report_run
    from utils.logging import setup_logging

    setup_logging()
    for folder in namespace.folder:
        report_run(Path(folder), namespace.device, namespace.split, namespace.workers)


if __name__ == "__main__":
    run_command(main)
