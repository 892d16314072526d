"""One logger for every command, and the progress bar that they share."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

LOGGER = logging.getLogger("yolo-distill")


def setup_logging(rank: int = -1) -> None:
    """Prints INFO lines of the first process (rank -1 or 0) to stdout, and only errors of the others."""
    LOGGER.handlers.clear()
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO if rank in (-1, 0) else logging.ERROR)
    LOGGER.propagate = False


def progress(
    iterable: Iterable[Any] | None = None, total: int | None = None, desc: str = "", enabled: bool = True
) -> Any:
    """A tqdm bar of the house's form: description, bar, count, elapsed < remaining, rate."""
    return tqdm(
        iterable,
        total=total,
        desc=desc,
        disable=not enabled,
        dynamic_ncols=True,
        mininterval=0.5,
        bar_format="{desc} {percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]",
    )
