"""Which lines of our own code an input reached: what tells an input that is worth keeping from one that is not."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WATCHED = tuple(f"{ROOT / name}/" for name in ("data", "engine", "models", "utils"))


class LineCoverage:
    """Collects pairs of lines that ran one after the other."""

    def __init__(self) -> None:
        self.seen: set[tuple[CodeType, int, int]] = set()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watches what runs inside, in threads too."""
        threading.settrace(self._on_call)
        sys.settrace(self._on_call)
        try:
            yield
        finally:
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]

    def _on_call(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(WATCHED):
            return None
        last, seen = frame.f_lineno, self.seen

        def on_line(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal last
            if event == "line":
                seen.add((code, last, frame.f_lineno))
                last = frame.f_lineno
            return on_line

        return on_line
