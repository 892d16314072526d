"""What every test starts from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from utils.logging import LOGGER


@pytest.fixture(autouse=True)
def fresh_logger() -> Iterator[None]:
    """Gives each test an untouched logger: command lines that run in this process set it up for good."""
    handlers, level = LOGGER.handlers[:], LOGGER.level
    LOGGER.propagate = True
    yield
    LOGGER.handlers[:] = handlers
    LOGGER.setLevel(level)
    LOGGER.propagate = True
