"""A reader with known faults, to see that each kind of fault is found."""

from __future__ import annotations

import os
import time
from pathlib import Path

INPUTS = (b"", b"raise", b"hang", b"fill the memory", b"end the process")
FILLED = 300 << 20  # bytes


class CanaryTarget:
    """Fails as the input asks it to."""

    def __init__(self, folder: Path) -> None:
        pass

    def __call__(self, data: bytes) -> None:
        if data == b"raise":
            raise KeyError("raise")
        if data == b"hang":
            time.sleep(1000)
        if data == b"fill the memory":
            bytearray(b"x") * FILLED
        if data == b"end the process":
            os._exit(7)
