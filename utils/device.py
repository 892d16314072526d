"""Choosing a device, making a run repeatable, and measuring time on devices that run ahead of Python."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from utils.errors import UsageError, UserError
from utils.text import printable, shown

MAX_GPU_DIGITS = 4


def available_devices() -> str:
    """What `--device` may name here, in words."""
    names = [f"{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    return ", ".join([*names, "cpu"])


def gpu_indices(spec: str, flag: str = "--device") -> list[int]:
    """The GPUs that a specification names: "0,1" -> [0, 1], "cuda:2" -> [2], "cuda" -> [0]; [] for "", "cpu" and "mps".

    Args:
        spec: the specification.
        flag: where it was given, for messages.

    Raises:
        UsageError: not a device specification at all.
    """
    name = spec.strip().lower()
    if name in ("", "cpu", "mps"):
        return []
    parts = [part.strip() for part in ("0" if name == "cuda" else name).replace("cuda:", "").split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) <= MAX_GPU_DIGITS for part in parts):
        raise UsageError(f"{flag} {shown(spec)} is not a device; use one of: {available_devices()}, or several as 0,1")
    return [int(part) for part in parts]


def select_device(spec: str | torch.device, batch_size: int | None = None, flag: str = "--device") -> torch.device:
    """The device this process computes on.

    Args:
        spec: "" (the first GPU, or else the CPU), "cpu", "mps", "0", "cuda:0", or "0,1" for one process
            per GPU, where each process takes the one at the place of its LOCAL_RANK.
        batch_size: total number of images a step; must be divisible by the number of GPUs.
        flag: where it was given, for messages.

    Raises:
        UserError: the device is not there; names those that are.
    """
    if isinstance(spec, torch.device):
        return spec
    name = spec.strip().lower()
    indices = gpu_indices(name, flag)
    local_rank = max(int(os.environ.get("LOCAL_RANK", -1)), 0)
    if not indices:
        if name == "mps" and not torch.backends.mps.is_available():
            raise UserError(f"{flag} mps is not available here; use one of: {available_devices()}")
        if name:
            return torch.device(name)
        return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    missing = [i for i in indices if i >= torch.cuda.device_count()]
    if missing:
        raise UserError(
            f"{flag} {printable(spec, 40)}: there is no GPU {missing[0]} here; use one of: {available_devices()}"
        )
    if batch_size is not None and batch_size % len(indices):
        raise UsageError(
            f"--batch-size {batch_size} cannot be shared by {len(indices)} GPUs; use a multiple of {len(indices)}"
        )
    if local_rank >= len(indices):
        raise UsageError(
            f"{flag} {printable(spec, 40)} names fewer GPUs than there are processes; name one for each process"
        )
    return torch.device("cuda", indices[local_rank])


def seed_everything(seed: int, deterministic: bool = True) -> None:
    """Seeds Python, NumPy and torch.

    Args:
        seed: any integer from 0.
        deterministic: use deterministic algorithms where there are any, so that two runs of one seed give the same
            bits.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.deterministic = deterministic
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    # Filling fresh memory guards against reading it uninitialised, which costs time and no part of ours does.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is not deterministic


@contextmanager
def random_streams_kept() -> Iterator[None]:
    """Leaves the global random streams of Python, numpy and PyTorch where they were before the block."""
    python, arrays = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)


def synchronize(device: torch.device) -> None:
    """Waits until everything queued on the device is done; nothing to wait for on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class Timer:
    """Adds up the time spent in `with timer:` blocks, the device's queue included.

    Attributes:
        seconds: total of all blocks so far.
        last: duration of the latest block.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")
        self.seconds = 0.0
        self.last = 0.0
        self._start = 0.0

    def __enter__(self) -> Timer:
        synchronize(self.device)
        self._start = time.perf_counter()
        return self

    def __exit__(self, *exc_info: object) -> None:
        synchronize(self.device)
        self.last = time.perf_counter() - self._start
        self.seconds += self.last


def images_to_device(images: torch.Tensor, device: torch.device, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """What a network sees of images, in training, evaluation and detection.

    Args:
        images: uint8 (N, 3, H, W).
        device: where the network is.
        dtype: float32, or float16 for a network in half precision.

    Returns:
        The images from 0 to 1 on the device, in channels-last layout there.
    """
    moved = images.to(device, non_blocking=True)
    return moved.to(dtype, memory_format=torch.channels_last).div_(255)
