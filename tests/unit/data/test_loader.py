from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

import data.decoding.decode
from data.augmentation.augment import AugmentConfig
from data.dataset import DetectionDataset, Sample, SampleShape
from data.loader import Batch, chunk_size, collate, create_loader
from data.records import DatasetIndex
from data.sampling import POOL_SIZE, EpochSampler, PartnerPools, SampleRequest, epoch_order, order_rng, sample_rng
from tests.unit.data.image_toys import SIZES_WH, toy_index
from utils.errors import UserError

SIZE = 64
CONFIG = AugmentConfig(hsv_s=0.5, scale=0.5, translate=0.1, fliplr=0.5, mosaic=0.8, mixup=0.2)


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> DatasetIndex:
    return toy_index(tmp_path_factory.mktemp("toys"), [*SIZES_WH, *SIZES_WH[:5]])  # 11 images


def sampler(count: int = 11, batch_size: int = 4, **options: object) -> EpochSampler:
    defaults = {
        "shuffle": True, "whole_batches": False, "seed": 0, "rank": 0, "world_size": 1, "drop_last": False,
    }  # fmt: skip
    return EpochSampler(count, batch_size, **defaults | options)  # type: ignore[arg-type]


def indices(batches: Sequence[Sequence[SampleRequest]]) -> list[list[int]]:
    return [[request.index for request in batch] for batch in batches]


def assert_same(a: Sequence[Batch], b: Sequence[Batch]) -> None:
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.targets, other.targets)
        assert one.paths == other.paths and one.shapes == other.shapes


class TestCollate:
    def test_targets_name_their_image(self) -> None:
        shape = SampleShape((9, 9), None)
        samples = [
            Sample(torch.full((3, 4, 4), i, dtype=torch.uint8), torch.full((count, 5), float(i)), f"im{i}", shape)
            for i, count in enumerate((2, 0, 1))
        ]
        batch = collate(samples)
        assert batch.images.shape == (3, 3, 4, 4) and batch.images.dtype == torch.uint8
        assert batch.images[2].eq(2).all()
        assert batch.targets.tolist() == [[0, 0, 0, 0, 0, 0]] * 2 + [[2, 2, 2, 2, 2, 2]]
        assert batch.paths == ("im0", "im1", "im2") and batch.shapes == (shape,) * 3

    def test_pinning_keeps_the_form(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, *_: self + 1)
        sample = Sample(torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(2, 5), "a", SampleShape((4, 4), None))
        batch = collate([sample])
        (pinned,) = pin_memory([batch])
        assert isinstance(pinned, Batch) and pinned.paths == batch.paths and pinned.shapes == batch.shapes
        assert pinned.images.eq(1).all() and pinned.targets.eq(1).all()

    def test_no_boxes_at_all(self) -> None:
        sample = Sample(torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(0, 5), "a", SampleShape((4, 4), None))
        assert collate([sample]).targets.shape == (0, 6)


class TestSampler:
    def test_an_epoch_visits_each_once(self) -> None:
        batches = indices(list(sampler()))
        assert [len(batch) for batch in batches] == [4, 4, 3] and len(sampler()) == 3
        assert sorted(sum(batches, [])) == list(range(11))

    def test_epochs_differ_and_repeat(self) -> None:
        one, other = sampler(), sampler()
        orders = []
        for epoch in (0, 1, 0):
            one.epoch = other.epoch = epoch
            assert list(one) == list(other)
            orders.append(indices(list(one)))
        assert orders[0] == orders[2] != orders[1]

    def test_requests_carry_epoch_and_mosaic(self) -> None:
        one = sampler(3, 4)
        one.epoch, one.mosaic = 7, False
        assert {(request.epoch, request.mosaic) for request in next(iter(one))} == {(7, False)}

    def test_without_shuffling(self) -> None:
        assert indices(list(sampler(5, 2, shuffle=False))) == [[0, 1], [2, 3], [4]]
        assert indices(list(sampler(5, 2, shuffle=False, drop_last=True))) == [[0, 1], [2, 3]]

    @pytest.mark.parametrize("count, world_size", [(11, 2), (11, 3), (12, 4), (2, 4)])
    def test_processes_share_equally(self, count: int, world_size: int) -> None:
        parts = [sampler(count, 2, rank=rank, world_size=world_size) for rank in range(world_size)]
        visited = [sum(indices(list(part)), []) for part in parts]
        share = -(-count // world_size)
        assert [len(part) for part in visited] == [share] * world_size
        assert len({len(part) for part in parts}) == 1 and len(parts[0]) == len(list(parts[0]))
        counts = Counter(sum(visited, []))
        assert set(counts) == set(range(count)) and sum(counts.values()) - count < world_size

    @pytest.mark.parametrize("world_size", [1, 2])
    def test_whole_batches_stay_together(self, world_size: int) -> None:
        parts = [
            indices(list(sampler(11, 4, whole_batches=True, rank=rank, world_size=world_size)))
            for rank in range(world_size)
        ]
        allowed = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
        assert all(batch in allowed for part in parts for batch in part)
        assert {len(part) for part in parts} == {3 if world_size == 1 else 2}
        assert {index for part in parts for batch in part for index in batch} == set(range(11))

    def test_weights(self) -> None:
        one = sampler(4, 4)
        one.index_weights = np.array([0, 1, 3, 0])
        drawn: Counter[int] = Counter()
        for epoch in range(500):
            one.epoch = epoch
            drawn.update(sum(indices(list(one)), []))
        assert set(drawn) == {1, 2} and sum(drawn.values()) == 2000
        assert drawn[2] == pytest.approx(1500, abs=80)  # 4 standard deviations


def test_each_sample_has_its_own_randomness() -> None:
    values = range(4)
    draws = [sample_rng(s, e, i).random() for s in values for e in values for i in values]
    draws += [order_rng(s, e).random() for s in values for e in values]
    assert len(set(draws)) == len(draws) == 80


class TestPools:
    @pytest.mark.parametrize("count", [3, 64, 127, 128, 300])
    def test_partition(self, count: int) -> None:
        pools = PartnerPools(0, count)
        found = {tuple(pools.pool(index, 2).tolist()) for index in range(count)}
        assert sorted(sum(map(list, found), [])) == list(range(count))
        assert all(index in pools.pool(index, 2) for index in range(count))
        assert all(POOL_SIZE <= len(pool) < 2 * POOL_SIZE or count < POOL_SIZE for pool in found)

    def test_neighbours_in_the_order_meet(self) -> None:
        order = epoch_order(0, 5, 200)
        assert set(PartnerPools(0, 200).pool(int(order[70]), 5)) == set(order[64:128].tolist())

    def test_each_image_is_decoded_about_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        index = toy_index(tmp_path, [(24, 24)] * 192)
        dataset = DetectionDataset(index, 24, AugmentConfig(mosaic=1.0, scale=0.5))
        dataset.reader.recent_bytes = 80 * 24 * 24 * 3  # a pool and a little more
        decoded = Counter()
        real = data.decoding.decode.decode_image

        def counting(path: str, reduction: int = 1) -> np.ndarray | None:
            decoded[path] += 1
            return real(path, reduction)

        monkeypatch.setattr(data.decoding.decode, "decode_image", counting)
        loader = create_loader(dataset, 16, workers=0)
        shown = sum(len(batch.targets) for batch in loader)
        assert shown > 300 and sum(decoded.values()) <= 1.1 * 192

    def test_chunks(self) -> None:
        assert chunk_size(1000, 16, 4) == 4  # 64 images
        assert chunk_size(1000, 64, 4) == 1 and chunk_size(1000, 128, 4) == 1
        assert chunk_size(26, 8, 2) == 3  # all workers keep busy: 26 / (4 * 2)
        assert chunk_size(3, 8, 2) == 1 and chunk_size(1000, 16, 0) == 1


class TestLoader:
    def test_workers_change_nothing(self, toys: DatasetIndex) -> None:
        epochs: dict[int, list[Batch]] = {}
        for workers in (0, 1, 2):
            loader = create_loader(DetectionDataset(toys, SIZE, CONFIG), 4, workers=workers)
            epochs[workers] = []
            for epoch, mosaic in ((0, True), (1, False)):
                loader.set_epoch(epoch, mosaic=mosaic)
                batches = list(loader)
                assert len(batches) == len(loader) == 3
                epochs[workers] += batches
        assert_same(epochs[0], epochs[1])
        assert_same(epochs[0], epochs[2])

    def test_resuming_repeats_an_epoch(self, toys: DatasetIndex) -> None:
        loader = create_loader(DetectionDataset(toys, SIZE, CONFIG), 4, workers=0)
        for epoch in range(3):
            loader.set_epoch(epoch)
            whole = list(loader)
        resumed = create_loader(DetectionDataset(toys, SIZE, CONFIG), 4, workers=0)
        resumed.set_epoch(2)
        assert_same(whole, list(resumed))

    def test_stopping_early_does_not_leak_into_the_next_epoch(self, toys: DatasetIndex) -> None:
        loader = create_loader(DetectionDataset(toys, SIZE, CONFIG), 2, workers=1)
        next(iter(loader))
        loader.set_epoch(1)
        fresh = create_loader(DetectionDataset(toys, SIZE, CONFIG), 2, workers=0)
        fresh.set_epoch(1)
        assert_same(list(loader), list(fresh))

    def test_global_generator_is_left_alone(self, toys: DatasetIndex) -> None:
        before = torch.get_rng_state()
        list(create_loader(DetectionDataset(toys, SIZE, CONFIG), 4, workers=0))
        assert torch.equal(before, torch.get_rng_state())

    def test_closing_the_mosaic(self, toys: DatasetIndex) -> None:
        loader = create_loader(DetectionDataset(toys, SIZE, AugmentConfig(mosaic=1.0)), 11, workers=0)
        loader.set_epoch(3, mosaic=False)
        (batch,) = loader
        assert batch.targets[:, 0].tolist() == list(range(11))  # one object an image

    def test_rectangular_batches(self, toys: DatasetIndex) -> None:
        dataset = DetectionDataset(toys, SIZE, None, rect=True, batch_size=4, pad=0.5)
        batches = list(create_loader(dataset, 4, workers=1, shuffle=False))
        assert [tuple(batch.images.shape[2:]) for batch in batches] == dataset.batch_shapes
        assert [path for batch in batches for path in batch.paths] == [record.path for record in dataset.records]
        with pytest.raises(ValueError, match="batch_size: 5"):
            create_loader(dataset, 5)

    def test_weights(self, toys: DatasetIndex) -> None:
        weights = np.zeros(11)
        weights[6] = 1
        loader = create_loader(DetectionDataset(toys, SIZE, CONFIG), 4, workers=0, index_weights=weights)
        assert {path for batch in loader for path in batch.paths} == {toys.records[6].path}
        loader.set_index_weights(None)
        assert len({path for batch in loader for path in batch.paths}) == 11
        for wrong in (np.ones(3), np.zeros(11), -np.ones(11)):
            with pytest.raises(ValueError, match="expected 11 weights"):
                loader.set_index_weights(wrong)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_an_error_is_one_line(self, tmp_path: Path, workers: int) -> None:
        index = toy_index(tmp_path)
        Path(index.records[1].path).unlink()
        loader = create_loader(DetectionDataset(index, SIZE, None), 2, workers=workers, shuffle=False)
        with pytest.raises(UserError) as caught:
            list(loader)
        assert "im01.png" in str(caught.value) and "\n" not in str(caught.value)
