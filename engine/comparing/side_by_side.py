"""Several trainings of an experiment at a time, each a process with its own log and its part of the threads."""

from __future__ import annotations

import os
import subprocess
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from data.loader import usable_cpus
from engine.comparing.experiment import Experiment
from engine.comparing.progress import Progress
from engine.comparing.trainings import THREADS, Step, Training, check_ending, note_end, prepare
from utils.logging import LOGGER
from utils.running.processes import end_children, start_child

LOG = "train.log"
"""In a run's folder: what its training says, where several run at a time."""
POLL_SECONDS = 0.2
TELL_SECONDS = 60.0


def threads_each(jobs: int, given: int | None) -> int | None:
    """Threads of each training; None leaves them as they are.

    Args:
        jobs: trainings side by side.
        given: number that was asked for. Without it several jobs share the processors, unless the environment says how
            many threads a process has.
    """
    if given or jobs == 1 or os.environ.get(THREADS):
        return given
    return max(usable_cpus() // jobs, 1)


def train_side_by_side(
    experiment: Experiment,
    folder: Path,
    trainings: Sequence[Training],
    jobs: int,
    threads: int | None,
    progress: Progress,
) -> None:
    """Trains what is missing, `jobs` at a time; all end with this process, even where it is killed.

    Raises:
        UserError: a training failed; the others are ended, and go on from there the next time.
    """
    waiting = deque(trainings)
    running: dict[str, tuple[Step, subprocess.Popen[bytes]]] = {}
    told = time.monotonic()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                training = waiting.popleft()
                step = prepare(experiment, folder, training, threads)
                if step.command:
                    with open(step.run / LOG, "ab") as log:
                        running[training.name] = step, start_child(step.command, step.environment, log)
            ended = [name for name, (_, child) in running.items() if child.poll() is not None]
            for name in ended:
                step, child = running[name]
                check_ending(name, child.returncode, f"in {step.run / LOG}")
                del running[name]
                note_end(step)
            if ended or time.monotonic() - told > TELL_SECONDS:
                told = time.monotonic()
                LOGGER.info(f"[{', '.join(ended) + ' done; ' if ended else ''}{progress.line(folder)}]")
            if running and not ended:
                time.sleep(POLL_SECONDS)
    finally:
        end_children([child for _, child in running.values()])
