"""How commands end: signals, pipes that nobody reads, parents that die, libraries' errors."""

from __future__ import annotations

import errno
import faulthandler
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import checkpoints.write
from checkpoints.checkpoint import save_checkpoint
from tests.golden import ROOT
from utils.running.explain import MAX_LINE, explain
from utils.running.processes import Terminated, advise
from utils.text import terminal_text

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

SLEEPER = """
import sys, time
from utils.running.cli import run_command
from utils.running.processes import advise
def main():
    open(sys.argv[1], "w").write("x")
    try:
        time.sleep(60)
    except BaseException as error:
        advise(error, "python train.py --resume last.pt goes on")
        raise
run_command(main)
"""
# The one that is started is the last word; it tells its number and sleeps.
STARTER = """
import sys
from utils.running.cli import run_command
from utils.running.processes import run_child
run_command(lambda: run_child([sys.executable, "-c", sys.argv[1], sys.argv[2]]))
"""
CHILD = """
import os, signal, sys, threading, time
from utils.running.cli import run_command
def main():
    if "busy" in sys.argv[1]:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with open(sys.argv[1] + ".part", "w") as stream:
        stream.write(str(os.getpid()))
    os.rename(sys.argv[1] + ".part", sys.argv[1])
    time.sleep(60)
run_command(main)
"""


def start(code: str, *words: object, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def wait_for(condition: Callable[[], object], seconds: float = 30) -> bool:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize(
    "signum, code, line",
    [
        (signal.SIGINT, 130, "interrupted; python train.py --resume last.pt goes on\n"),
        (signal.SIGTERM, 143, "ended by SIGTERM; python train.py --resume last.pt goes on\n"),
        (signal.SIGHUP, 129, "ended by SIGHUP; python train.py --resume last.pt goes on\n"),
    ],
)
def test_a_signal_ends_a_command_in_one_line(tmp_path: Path, signum: int, code: int, line: str) -> None:
    process = start(SLEEPER, tmp_path / "started")
    assert wait_for((tmp_path / "started").exists)
    process.send_signal(signum)
    _, errors = process.communicate()
    assert (process.returncode, errors) == (code, line)


def test_a_command_under_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    process = start(SLEEPER, tmp_path / "started", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert wait_for((tmp_path / "started").exists)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.communicate() and process.returncode == 143


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize("name", ["pid", "busy"])
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_training_ends_with_the_command_that_started_it(tmp_path: Path, signum: int, name: str) -> None:
    file = tmp_path / name
    parent = start(STARTER, CHILD, file, stdin=subprocess.DEVNULL)
    assert wait_for(file.exists)
    child = int(file.read_text())
    parent.send_signal(signum)
    assert wait_for(lambda: not is_running(child), 8), "five seconds, and the machine may be busy"
    parent.communicate()
    assert parent.returncode == (-9 if signum == signal.SIGKILL else 143)


def test_a_child_that_ends_by_itself_is_waited_for(tmp_path: Path) -> None:
    code = "import sys; from utils.running.cli import run_command; run_command(lambda: print('done', flush=True) or 7)"
    parent = start(STARTER, code, "")
    output, errors = parent.communicate()
    assert (parent.returncode, output, errors) == (7, "done\n", "")


@pytest.mark.parametrize(
    "body",
    [
        "print('x\\n' * 200000)",
        "[logging.LOGGER.info('x' * 1000) for _ in range(500)]",
        "print('x')",
    ],
)
def test_an_output_that_nobody_reads_ends_a_command_quietly(body: str) -> None:
    code = (
        "import time; from utils import logging; from utils.running.cli import run_command; logging.setup_logging()\n"
        f"run_command(lambda: time.sleep(0.3) or {body} and None)"
    )
    process = start(code)
    assert process.stdout and process.stderr
    process.stdout.close()
    errors = process.stderr.read()
    assert (process.wait(), errors) == (141, "")


def test_names_that_the_terminal_cannot_show_end_nothing() -> None:
    code = (
        "from utils import logging; from utils.running.cli import run_command\n"
        "run_command(lambda: logging.setup_logging() or print('a\\xe9') or logging.LOGGER.info('b\\udce9\\u540d'))"
    )
    process = start(code, env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    output, errors = process.communicate()
    assert (process.returncode, output, errors) == (0, "a\\xe9\nb?\\u540d\n", "")


def test_lines_hold_no_control_characters_of_files() -> None:
    assert terminal_text("a\x1b[2Jb\r\x9bc\u202ed\n\te\u3000名") == "a?[2Jb??c?d\n\te\u3000名"


def die(signum: int) -> None:
    faulthandler.disable()  # pytest's, which prints all stacks
    os.kill(os.getpid(), signum)


class Deadly(Dataset[int]):
    """A data set whose loader processes end in a given way."""

    def __init__(self, end: Callable[[], Any]) -> None:
        self.end = end

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        self.end()
        return index


@pytest.mark.parametrize(
    "end, line",
    [
        (lambda: die(signal.SIGKILL), "was killed, most likely because the memory is full; lower"),
        (lambda: die(signal.SIGABRT), r"crashed \(Aborted\); --workers 0 shows"),
        (lambda: die(signal.SIGBUS), r"shared memory \(/dev/shm\) is full.*--workers 0.*--shm-"),
        (lambda: os._exit(3), "died, most likely because the memory is full"),
        (lambda: np.empty(1 << 50), "the memory is full; lower --batch-size"),
    ],
)  # fmt: skip
def test_the_end_of_a_loader_process_is_one_line(end: Callable[[], Any], line: str) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        list(DataLoader(Deadly(end), num_workers=1, multiprocessing_context="fork"))
    advise(caught.value, "--resume goes on")
    told = explain(caught.value)
    assert re.search(line, told) and "\n" not in told and told.endswith("; --resume goes on")


@pytest.mark.parametrize(
    "text, line",
    [
        ("unable to allocate shared memory(shm) for file </torch_1_2_0>: No space left on device (28)", "/dev/shm"),
        ("unable to write to file </torch_1_2_0>: No space left on device (28)", "/dev/shm"),
        ("unable to open shared memory object </torch_1> in read-write mode: Too many open files (24)", "ulimit -n"),
        ("received 0 items of ancdata", "ulimit -n"),
        ("can't start new thread", "ulimit -u"),
        ("unable to mmap 64 bytes from file </torch_1>: Cannot allocate memory (12)", "the memory is full"),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "the GPU's memory is full"),
    ],
)
def test_what_libraries_say_has_a_remedy(text: str, line: str) -> None:
    assert line in explain(RuntimeError(f"Caught RuntimeError in DataLoader worker process 0.\nOriginal\n{text}"))
    assert not explain(ValueError(text))


@pytest.mark.parametrize(
    "error, line",
    [
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "the memory is full"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "ulimit -u"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 5000), "File name too long"),
        (OSError(errno.ELOOP, "Too many levels of symbolic links", "a\x1b[2J\nb"), "'a?[2J?b'"),
        (OSError(errno.EIO, "Input/output error", "/data/x"), "cannot use '/data/x': Input/output error"),
    ],
)
def test_errors_of_the_system_are_one_short_line(error: OSError, line: str) -> None:
    told = explain(error)
    assert line in told and told.isprintable() and len(told) <= MAX_LINE


def test_a_long_message_keeps_its_beginning_and_its_remedy() -> None:
    class Mistake(Exception):
        exit_code = 1

    told = explain(Mistake("what\nis wrong " + "x" * 5000 + " do this"))
    assert told.startswith("what is wrong xxx") and told.endswith(" do this") and len(told) == MAX_LINE


@pytest.mark.parametrize(
    "interruption",
    [
        RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. "),
        KeyboardInterrupt(),
        Terminated(signal.SIGTERM),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_what_interrupts_a_checkpoint_is_not_blamed_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: BaseException, wrapped: bool
) -> None:
    def save(content: Any, stream: Any, **_: Any) -> None:
        try:
            raise interruption
        except BaseException:
            if wrapped:  # as PyTorch does with what a stream raises
                raise RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos 64 vs 0")  # noqa: B904
            raise

    monkeypatch.setattr(checkpoints.write.torch, "save", save)
    with pytest.raises(type(interruption)) as caught:
        save_checkpoint(tmp_path / "last.pt", {"model": torch.zeros(1)})
    assert caught.value is interruption and not list(tmp_path.iterdir())


def test_an_error_of_a_loader_process_keeps_its_file() -> None:
    error = pickle.loads(pickle.dumps(OSError(errno.EIO, "Input/output error", "/data/a.jpg")))
    assert explain(error).startswith("cannot use '/data/a.jpg'")


INTERRUPTED_SAVES = """
import contextlib
import torch
import checkpoints.write as checkpoint_write
class Stream:
    def __init__(self, last): self.left = last
    def fileno(self): return 1
    def flush(self): pass
    def write(self, content):
        self.left -= 1
        if self.left == 0: raise RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. ")
        if self.left < 0: raise ValueError("write to closed file")
        return len(content)
interrupted, last = True, 0
while interrupted:
    last += 1
    checkpoint_write.replacing = lambda path, mode: contextlib.nullcontext(Stream(last))
    checkpoint_write.os.fsync = lambda descriptor: None
    try:
        checkpoint_write.save_checkpoint("last.pt", {"one": torch.zeros(100), "two": torch.zeros(9)})
        interrupted = False
    except RuntimeError as error:
        assert "DataLoader" in str(error)
print(last)
"""


def test_a_save_may_be_interrupted_at_any_moment() -> None:
    done = start(INTERRUPTED_SAVES)
    output, errors = done.communicate()
    assert done.returncode == 0, errors[-2000:]
    assert int(output) > 10
