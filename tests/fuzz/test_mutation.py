"""Mutations: repeatable, never at a loss, and mostly still files of their format."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path

import pytest
import yaml

from fuzz.mutation import MUTATIONS, mutate
from fuzz.pickles import split_pickle
from fuzz.scalars import LARGEST_INPUT
from fuzz.seeds import seeds
from fuzz.targets import TARGETS
from fuzz.texts import LOADER

COUNT = 60


@pytest.mark.parametrize("reader", MUTATIONS)
def test_seeds_are_read_and_their_mutations_are_repeatable(reader: str, tmp_path: Path) -> None:
    pool = seeds(reader, tmp_path)
    target = TARGETS[reader](tmp_path)
    for data in pool:
        assert len(data) < LARGEST_INPUT
        target(data)
    first, second = (random.Random(7), random.Random(7))
    changed = [mutate(reader, pool, first) for _ in range(COUNT)]
    assert changed == [mutate(reader, pool, second) for _ in range(COUNT)]
    assert len(set(changed) - set(pool)) > COUNT // 2


def test_most_mutated_yaml_is_yaml(tmp_path: Path) -> None:
    pool, rng, parsed = seeds("yaml", tmp_path), random.Random(0), 0
    for _ in range(COUNT):
        try:
            yaml.load(mutate("yaml", pool, rng), LOADER)
        except (yaml.YAMLError, ValueError, RecursionError):
            continue
        parsed += 1
    assert parsed > COUNT // 2


def test_most_mutated_checkpoints_reach_the_pickle(tmp_path: Path) -> None:
    pool = [data for data in seeds("checkpoint", tmp_path) if data.startswith(b"PK")]
    rng, reached = random.Random(0), 0
    for _ in range(COUNT):
        try:
            with zipfile.ZipFile(io.BytesIO(mutate("checkpoint", pool, rng))) as archive:
                name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                reached += len(split_pickle(archive.read(name))[0]) > 20
        except Exception:
            continue
    assert reached > COUNT // 2
