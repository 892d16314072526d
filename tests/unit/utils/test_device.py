"""Choosing a device, repeatable random numbers, clocks; and how command lines end."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from distill.errors import DistillError
from utils.device import Timer, gpu_indices, seed_everything, select_device
from utils.errors import UsageError, UserError
from utils.running.cli import CommandParser, run_command


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Pretends that the machine has so many GPUs."""

    def pretend(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU model {index}")
        monkeypatch.delenv("LOCAL_RANK", raising=False)

    return pretend


def test_specifications() -> None:
    assert [gpu_indices(spec) for spec in ("", "cpu", "mps", "0", "0, 2", "cuda:3", "cuda")] == [
        [], [], [], [0], [0, 2], [3], [0],
    ]  # fmt: skip


def test_device_where_there_is_no_gpu(gpus: Callable[[int], None]) -> None:
    gpus(0)
    assert select_device("") == select_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="there is no GPU 0 here; use one of: .*cpu"):
        select_device("0")


def test_device_where_there_are_gpus(gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(2)
    assert select_device("") == torch.device("cuda", 0)
    assert select_device("1") == select_device("cuda:1") == torch.device("cuda", 1)
    assert select_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match=r"no GPU 2 here; use one of: 0 \(GPU model 0\), 1 \(GPU model 1\)"):
        select_device("2")
    with pytest.raises(UsageError, match="--batch-size 3 cannot be shared by 2 GPUs"):
        select_device("0,1", batch_size=3)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert select_device("1,0") == torch.device("cuda", 0)
    with pytest.raises(UsageError, match="fewer GPUs than there are processes"):
        select_device("0")


def test_device_mistakes(gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UsageError, match="'gpu' is not a device"):
        select_device("gpu")
    with pytest.raises(UserError, match="mps is not available"):
        select_device("mps")
    assert select_device(torch.device("cpu")) == torch.device("cpu")


def test_seed_repeats_every_stream() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(1))  # noqa: NPY002

    was = torch.are_deterministic_algorithms_enabled()
    try:
        seed_everything(5)
        first, other = draw(), draw()
        assert torch.are_deterministic_algorithms_enabled()
        seed_everything(5, deterministic=False)
        assert draw() == first != other
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(was)


def test_timer_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([1.0, 1.5, 4.0, 6.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    timer = Timer()
    with timer:
        pass
    with timer:
        pass
    assert (timer.last, timer.seconds) == (2.0, 2.5)


# ------------------------------------------------------------------------------------------------ command lines


def ending(error: BaseException | None, capsys: pytest.CaptureFixture[str], code: int | None = None) -> tuple[Any, str]:
    """Exit code and stderr of a command that raises `error` or returns `code`."""

    def main() -> int | None:
        if error:
            raise error
        return code

    with pytest.raises(SystemExit) as exit_info:
        run_command(main)
    return exit_info.value.code, capsys.readouterr().err


def test_command_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(None, capsys) == (0, "")
    assert ending(None, capsys, code=3) == (3, "")
    assert ending(UserError("no such file"), capsys) == (1, "error: no such file\n")
    assert ending(UsageError("wrong flag"), capsys) == (2, "error: wrong flag\n")
    assert ending(DistillError("layers do not pair"), capsys) == (1, "error: layers do not pair\n")
    assert ending(KeyboardInterrupt(), capsys) == (130, "interrupted\n")
    assert ending(SystemExit(2), capsys) == (2, "")


def test_command_explains_full_disk_and_full_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = ending(OSError(errno.ENOSPC, "No space left on device", "runs/last.pt"), capsys)
    assert code == 1 and text.count("\n") == 1 and "disk is full while writing runs/last.pt" in text
    code, text = ending(PermissionError(errno.EACCES, "Permission denied", "/runs"), capsys)
    assert code == 1 and text == (
        "error: cannot use '/runs': Permission denied; choose another place or change its rights\n"
    )
    for error in (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried ..."), MemoryError()):
        code, text = ending(error, capsys)
        assert code == 1 and text.count("\n") == 1 and "--batch-size" in text


def test_mistakes_in_the_flags_are_one_line() -> None:
    parser = CommandParser("train.py")
    parser.add_argument("--epochs", type=int)
    for words, message in (
        (["--epochs", "x"], "argument --epochs: invalid int value: 'x'; train.py --help lists the flags"),
        (["--epoches=3"], "unrecognized arguments: --epoches=3; did you mean --epochs? (train.py --help lists"),
        (["--zzz", "3"], "unrecognized arguments: --zzz 3; train.py --help lists the flags"),
    ):
        with pytest.raises(UsageError) as caught:
            parser.parse_args(words)
        assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [ValueError("bug"), OSError(errno.EIO, "bad"), RuntimeError("bug")])
def test_command_keeps_the_traceback_of_a_bug(error: Exception) -> None:
    def main() -> None:
        raise error

    with pytest.raises(type(error)):
        run_command(main)
