"""Which images are visited in an epoch, in which order, by whom, and which of them meet in a mosaic.

All of it follows from (seed, epoch) alone. The order is cut into pools of some 64 images, and a mosaic takes its images
from one pool. As neighbours in the order are visited together by one worker, each image is decoded about once an epoch
although it appears in about four mosaics; and as the order is new in every epoch, so are the pools.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

POOL_SIZE = 64


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """What a data set is asked for: which image, in which epoch, and whether it may become a mosaic."""

    index: int
    epoch: int = 0
    mosaic: bool = True


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The source of all randomness of one sample."""
    return np.random.default_rng((seed, epoch, index + 1))


def order_rng(seed: int, epoch: int) -> np.random.Generator:
    """The source of all randomness of an epoch's order."""
    return np.random.default_rng((seed, epoch, 0))  # no sample's: those end in index + 1


def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order in which an epoch visits `count` images: int64 (count,)."""
    return order_rng(seed, epoch).permutation(count)


class PartnerPools:
    """The images that may meet in a mosaic.

    Args:
        seed: of the training.
        count: number of images.
    """

    def __init__(self, seed: int, count: int) -> None:
        self.seed = seed
        self.count = count
        self._epoch = -1
        self._order = self._position = np.zeros(0, np.int64)

    def pool(self, index: int, epoch: int) -> np.ndarray:
        """The indices of the 64 to 127 images, or all if there are fewer, among which `index` is in this epoch."""
        if epoch != self._epoch:
            self._order = epoch_order(self.seed, epoch, self.count)
            self._position = np.argsort(self._order)
            self._epoch = epoch
        num_pools = max(self.count // POOL_SIZE, 1)
        number = min(int(self._position[index]) // POOL_SIZE, num_pools - 1)
        stop = self.count if number == num_pools - 1 else (number + 1) * POOL_SIZE
        return self._order[number * POOL_SIZE : stop]


class EpochSampler:
    """The batches that one process makes in an epoch.

    Every process gets the same number of samples: the order is continued from its start until it divides evenly.

    Args:
        count: number of images.
        batch_size: images in a batch of this process.
        shuffle: a new random order in each epoch, or the data set's own.
        whole_batches: batches are consecutive images of the data set, and are shuffled as wholes.
        seed: of the training.
        rank: this process.
        world_size: number of processes.
        drop_last: leave out a last batch that is not full.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        shuffle: bool,
        whole_batches: bool,
        seed: int,
        rank: int,
        world_size: int,
        drop_last: bool,
    ) -> None:
        self.count = count
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.whole_batches = whole_batches
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.drop_last = drop_last
        self.epoch = 0
        self.mosaic = True
        self.index_weights: np.ndarray | None = None

    def __len__(self) -> int:
        if self.whole_batches:
            return len(self._shard(np.arange(self._round(self.count, self.batch_size))))
        return self._round(len(self._shard(np.arange(self.count))), self.batch_size)

    def __iter__(self) -> Iterator[list[SampleRequest]]:
        if self.whole_batches:
            numbers = np.arange(self._round(self.count, self.batch_size))
            if self.shuffle:
                numbers = order_rng(self.seed, self.epoch).permutation(numbers)
            for number in self._shard(numbers):
                yield self._requests(range(number * self.batch_size, min((number + 1) * self.batch_size, self.count)))
            return
        mine = self._shard(self._order())
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield self._requests(mine[start : start + self.batch_size])

    def _order(self) -> np.ndarray:
        if self.index_weights is not None:
            weights = np.asarray(self.index_weights, np.float64)
            return order_rng(self.seed, self.epoch).choice(self.count, self.count, p=weights / weights.sum())
        return epoch_order(self.seed, self.epoch, self.count) if self.shuffle else np.arange(self.count)

    def _shard(self, order: np.ndarray) -> np.ndarray:
        """This process's consecutive part. (Parts that alternate would scatter the pools over the processes.)"""
        share = self._round(len(order), self.world_size)
        return np.resize(order, share * self.world_size)[self.rank * share : (self.rank + 1) * share]

    def _round(self, count: int, divisor: int) -> int:
        return count // divisor if self.drop_last else -(-count // divisor)

    def _requests(self, indices: np.ndarray | range) -> list[SampleRequest]:
        return [SampleRequest(int(index), self.epoch, self.mosaic) for index in indices]
