"""Batches for training and evaluation, made by worker processes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from data.dataset import DetectionDataset, Sample, SampleShape
from data.labels import DatasetIndex
from data.sampling import POOL_SIZE, EpochSampler, SampleRequest
from utils.errors import UserError
from utils.running.processes import leave_signals_to_main_process

__all__ = ["Batch", "DetectionLoader", "SampleRequest", "collate", "create_loader"]


@dataclass(frozen=True)
class Batch:
    """What one step works on.

    Attributes:
        images: uint8 RGB (N, 3, H, W).
        targets: float32 (T, 6) rows [image, class, cx, cy, w, h], normalised.
        paths: N image files.
        shapes: N descriptions of where the images come from.
        num_unlabelled: how many images, the last ones, have no labels because nobody looked, not as they are empty.
    """

    images: torch.Tensor
    targets: torch.Tensor
    paths: tuple[str, ...]
    shapes: tuple[SampleShape, ...]
    num_unlabelled: int = 0

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, from which copies to a GPU do not wait; DataLoader calls it."""
        return replace(self, images=self.images.pin_memory(), targets=self.targets.pin_memory())


def collate(samples: Sequence[Sample]) -> Batch:
    """Puts samples of one shape into a batch."""
    targets = torch.empty((sum(len(sample.labels) for sample in samples), 6))
    start = 0
    for number, sample in enumerate(samples):
        rows = targets[start : start + len(sample.labels)]
        rows[:, 0] = number
        rows[:, 1:] = sample.labels
        start += len(rows)
    return Batch(
        default_collate([sample.image for sample in samples]),  # in a worker, straight into shared memory
        targets,
        tuple(sample.path for sample in samples),
        tuple(sample.shape for sample in samples),
    )


class _Chunks(Dataset[Any]):
    """Makes several consecutive batches at a time, so that the images of a partner pool meet in one worker."""

    def __init__(self, dataset: DetectionDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, chunk: list[list[SampleRequest]]) -> list[Batch] | Exception:
        try:
            batches = [collate([self.dataset[request] for request in batch]) for batch in chunk]
            if get_worker_info():
                for batch in batches:  # where a lack of shared memory is an error; later it would be a hang
                    if len(batch.targets):
                        batch.targets.share_memory_()
            return batches
        except (UserError, OSError) as error:
            return error  # raised in a worker, its one line would come wrapped in a traceback
        except MemoryError as error:
            return MemoryError(str(error))  # NumPy's own cannot be sent to another process


class _ChunkSampler:
    """Groups the sampler's batches, `size` at a time."""

    def __init__(self, sampler: EpochSampler, size: int) -> None:
        self.sampler = sampler
        self.size = size

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.size)

    def __iter__(self) -> Iterator[list[list[SampleRequest]]]:
        chunk: list[list[SampleRequest]] = []
        for batch in self.sampler:
            chunk.append(batch)
            if len(chunk) == self.size:
                yield chunk
                chunk = []
        if chunk:
            yield chunk


class DetectionLoader:
    """Iterates over the batches of an epoch.

    Args:
        dataset: where samples come from.
        sampler: which samples, in which order.
        workers: number of worker processes; 0 makes samples in this one.
    """

    def __init__(self, dataset: DetectionDataset, sampler: EpochSampler, workers: int) -> None:
        self.dataset = dataset
        self.batch_size = sampler.batch_size
        self._sampler = sampler
        self._loader = DataLoader(
            _Chunks(dataset),
            batch_size=None,
            sampler=_ChunkSampler(sampler, chunk_size(len(sampler), sampler.batch_size, workers)),
            collate_fn=_as_it_is,
            num_workers=workers,
            worker_init_fn=_start_worker,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # otherwise every epoch would draw from the global random stream
        )

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[Batch]:
        for batches in self._loader:
            if isinstance(batches, Exception):
                raise batches
            yield from batches

    def set_epoch(self, epoch: int, mosaic: bool = True) -> None:
        """Sets the epoch of the next iteration, and whether it has mosaics."""
        self._sampler.epoch = epoch
        self._sampler.mosaic = mosaic

    def set_index_weights(self, weights: np.ndarray | None) -> None:
        """Draws the images of the following epochs with these weights, (n,) and at least 0, or each once for None."""
        if weights is not None:
            weights = np.asarray(weights, np.float64)
            if weights.shape != (len(self.dataset),) or not (weights >= 0).all() or not weights.sum() > 0:
                raise ValueError(f"index_weights: expected {len(self.dataset)} weights of at least 0, not all 0")
            if self.dataset.rect:
                raise ValueError("index_weights: rectangular batches have a fixed order; use rect=False")
        self._sampler.index_weights = weights


def create_loader(
    dataset: DetectionDataset,
    batch_size: int,
    *,
    workers: int = 2,
    shuffle: bool = True,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    drop_last: bool = False,
    index_weights: np.ndarray | None = None,
) -> DetectionLoader:
    """A loader of one process's share of a data set.

    Args:
        dataset: where samples come from.
        batch_size: of this process. With rectangular batches it must be the data set's.
        workers: worker processes; never more than this process's share of the processors, or than there is work for.
        shuffle: a new random order in each epoch. Rectangular batches are shuffled as wholes.
        seed: of the order. The data set's own seed keeps the images that meet in mosaics in one worker.
        rank: this process, 0 .. world_size - 1.
        world_size: number of processes.
        drop_last: leave out a last batch that is not full.
        index_weights: see DetectionLoader.set_index_weights.
    """
    if dataset.rect and batch_size != dataset.batch_size:
        raise ValueError(f"batch_size: {batch_size}, but the data set has rectangular batches of {dataset.batch_size}")
    sampler = EpochSampler(
        len(dataset), batch_size, shuffle=shuffle, whole_batches=dataset.rect, seed=seed, rank=rank,
        world_size=world_size, drop_last=drop_last,
    )  # fmt: skip
    workers = max(0, min(workers, usable_cpus() // world_size or 1, len(sampler)))
    loader = DetectionLoader(dataset, sampler, workers)
    loader.set_index_weights(index_weights)
    return loader


def chunk_size(num_batches: int, batch_size: int, workers: int) -> int:
    """Batches that a worker makes at a time: a partner pool's worth, but few enough to keep all workers busy."""
    by_pool = max(POOL_SIZE // batch_size, 1)
    return min(by_pool, max(num_batches // (4 * workers), 1)) if workers else 1


def usable_cpus() -> int:
    """Number of processors that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)  # the workers are the parallelism
    leave_signals_to_main_process()


def _as_it_is(item: Any) -> Any:
    return item


def validation_loader(
    index: DatasetIndex,
    img_size: int,
    batch_size: int,
    workers: int,
    stride: int,
    fixed_hw: tuple[int, int] | None = None,
) -> DetectionLoader:
    """Batches for evaluation: no augmentation, images of similar shape together, half a stride of border.

    With `fixed_hw` all images are fitted into that height and width instead.
    """
    dataset = DetectionDataset(
        index, max(fixed_hw or (img_size,)), None, rect=fixed_hw is None, batch_size=batch_size, stride=stride, pad=0.5,
        fixed_hw=fixed_hw,
    )  # fmt: skip
    return create_loader(dataset, batch_size, workers=workers, shuffle=False)
