"""Training over several processes with torchrun; everything here does nothing in a single process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from utils.errors import UsageError

TIMEOUT = timedelta(hours=12)  # the others wait while the main process indexes, validates and draws


@dataclass(frozen=True)
class World:
    """This process among all: rank and local rank are -1 and size is 1 without torchrun."""

    rank: int = -1
    local_rank: int = -1
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process prints, evaluates and saves."""
        return self.rank in (-1, 0)

    @property
    def active(self) -> bool:
        """Whether there is more than one process to agree with."""
        return self.size > 1


def announced_world(batch_size: int) -> World:
    """The world that torchrun announces in the environment.

    Args:
        batch_size: total over all processes; must be a multiple of their number.

    Raises:
        UsageError: the batch cannot be shared equally, or a variable of the environment is missing.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        return World()
    missing = [name for name in ("RANK", "LOCAL_RANK") if name not in os.environ]
    if missing:
        raise UsageError(f"WORLD_SIZE is {size}, but {missing[0]} is not set; start several processes with torchrun")
    if batch_size % size:
        fitting = batch_size // size * size or size
        raise UsageError(f"--batch-size {batch_size} is not a multiple of the {size} processes; use {fitting}")
    return World(int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"]), size)


def join_world(world: World, device: torch.device) -> None:
    """Makes `device` this process's own and meets the other processes.

    Args:
        world: see `announced_world`.
        device: where this process computes; another GPU in each process.
    """
    if device.type == "cuda":
        if device.index >= torch.cuda.device_count():
            raise UsageError(f"{device} is not there: start at most {torch.cuda.device_count()} processes, one a GPU")
        torch.cuda.set_device(device)  # NCCL exchanges objects and barriers by way of the current device
    if world.active:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)


def leave_world(world: World) -> None:
    """Leaves the process group, once every process has come here."""
    if world.active:
        dist.barrier()
        dist.destroy_process_group()


def broadcast_module(module: nn.Module, world: World) -> None:
    """Gives every process the first one's parameters and buffers."""
    if world.active:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, 0)


def average_gradients(module: nn.Module, world: World) -> None:
    """Averages gradients over the processes, for modules that DistributedDataParallel does not wrap.

    A parameter without a gradient on this process counts as zero.
    """
    if not world.active:
        return
    for parameter in module.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
            parameter.grad /= world.size


def agree(value: Any, world: World) -> Any:
    """The main process's value, in every process."""
    if not world.active:
        return value
    box = [value]
    dist.broadcast_object_list(box, 0)
    return box[0]


@contextmanager
def main_first(world: World) -> Iterator[None]:
    """Lets the main process do something, such as writing a cache, before the others do it."""
    if world.active and not world.is_main:
        dist.barrier()
    yield
    if world.active and world.is_main:
        dist.barrier()
