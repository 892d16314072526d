"""One logger for every command, and the progress bar that they share."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from utils.text import terminal_text

LOGGER = logging.getLogger("yolo-distill")


class TerminalFormatter(logging.Formatter):
    """The bare message. Control characters that came into it with a file's content do not reach the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """The message with `?` for control characters; line breaks and tabs stay."""
        text = super().format(record)
        return terminal_text(text)


class OutputHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes lines; where they cannot be written the command ends, instead of a traceback for every line."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Passes an error of the stream on, such as that of a pipe that nobody reads any more."""
        if isinstance(sys.exc_info()[1], OSError):
            raise
        super().handleError(record)


def setup_logging(rank: int = -1) -> None:
    """Prints INFO lines of the first process (rank -1 or 0) to stdout, and only errors of the others."""
    LOGGER.handlers.clear()
    handler = OutputHandler(sys.stdout)
    handler.setFormatter(TerminalFormatter("%(message)s"))
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
