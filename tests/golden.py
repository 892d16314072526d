"""Where the golden values lie, and how to read them; tests that need one are skipped where the folder is absent."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
GOLDEN = Path(os.environ.get("GOLDEN_DIR", SHARED / "golden"))


def golden_path(relative: str) -> Path:
    """Path of a golden file below the golden folder; skips the calling test when it is absent."""
    path = GOLDEN / relative
    if not path.exists():
        pytest.skip(f"golden values {relative} are not here (set GOLDEN_DIR)")
    return path


def golden_files(folder: str, pattern: str) -> list[Path]:
    """All golden files of a folder, for parametrisation; an empty list where the folder is absent."""
    return sorted((GOLDEN / folder).glob(pattern))


def load_npz(relative: str) -> dict[str, np.ndarray]:
    with np.load(golden_path(relative), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def load_json(relative: str) -> Any:
    return json.loads(golden_path(relative).read_text())


def meta(arrays: dict[str, np.ndarray]) -> Any:
    """The JSON document that describes an npz file."""
    return json.loads(bytes(arrays["meta_json"]))


def shared_path(relative: str) -> Path:
    """Path of a shared file (weights/..., data/...); skips the calling test when it is absent."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"{relative} is not here")
    return path
