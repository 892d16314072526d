"""Folders and files that several processes want at once, and what killed processes leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import utils.paths
from tests.golden import ROOT
from utils.errors import UsageError, UserError
from utils.paths import remove_dead_drafts, replacing
from utils.running.folders import LOCK_FILE, FolderLock, claim_folder, output_folder, remove_run_drafts

needs_posix = pytest.mark.skipif(os.name != "posix", reason="signals and forks of POSIX")

CLAIMS = """
import sys, time
from utils.running.folders import claim_folder
while time.time() < float(sys.argv[2]): pass
print(*(claim_folder(sys.argv[1]) for _ in range(40)), sep="\\n")
"""
HOLDER = """
import os, sys, time
from utils.running.folders import FolderLock
lock = FolderLock(sys.argv[1])
worker = os.fork()
print(worker or "", end="\\n" if worker else "", flush=True)
time.sleep(60)
"""


def python(code: str, *words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_processes_at_the_same_instant_get_folders_of_their_own(tmp_path: Path) -> None:
    start = time.time() + 1
    processes = [python(CLAIMS, tmp_path / "runs" / "exp", start) for _ in range(5)]
    got = [line for process in processes for line in process.communicate()[0].splitlines()]
    assert len(got) == len(set(got)) == 200
    assert sorted(map(str, (tmp_path / "runs").iterdir())) == sorted(got)


def test_claimed_folders_count_up(tmp_path: Path) -> None:
    names = ["exp", "exp2", "exp3"]
    assert [claim_folder(tmp_path / "a" / "exp").name for _ in names] == names
    (tmp_path / "a" / "exp41").write_text("")
    assert claim_folder(tmp_path / "a" / "exp").name == "exp42"
    assert claim_folder(tmp_path / "a" / "exp", exist_ok=True).name == "exp"
    (tmp_path / "b").symlink_to(tmp_path / "nowhere")
    assert claim_folder(tmp_path / "b").name == "b2"
    for wrong in ("/", tmp_path / "x" / ".."):
        with pytest.raises(UsageError, match="no name for a folder"):
            claim_folder(wrong)


@needs_posix
def test_a_locked_folder_is_free_the_moment_its_process_is_killed(tmp_path: Path) -> None:
    holder = python(HOLDER, tmp_path)
    assert holder.stdout
    worker = int(holder.stdout.readline())
    try:
        with pytest.raises(
            UserError, match=rf"is being written by process {holder.pid} \(-c .*\) since .*; wait for it"
        ):
            FolderLock(tmp_path)
        holder.kill()
        holder.wait()
        os.kill(worker, 0)  # a forked loader worker outlives it for a while, and does not hold the lock
        FolderLock(tmp_path).release()
    finally:
        os.kill(worker, signal.SIGKILL)
        holder.kill()


def test_a_process_may_take_its_own_folder_again(tmp_path: Path) -> None:
    outer, inner = FolderLock(tmp_path), FolderLock(tmp_path / ".." / tmp_path.name)
    inner.release()
    inner.release()
    assert refused(tmp_path)
    outer.release()
    assert not refused(tmp_path) and not (tmp_path / LOCK_FILE).exists()


def refused(folder: Path) -> bool:
    """Whether another process cannot take a folder."""
    code = "import sys; from utils.running.folders import FolderLock; FolderLock(sys.argv[1])"
    return (
        subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, stderr=subprocess.DEVNULL).returncode != 0
    )


def test_a_waiting_process_gets_the_folder_of_one_that_ends(tmp_path: Path) -> None:
    holder = python("import sys, time; from utils.running.folders import FolderLock; lock = FolderLock(sys.argv[1]);"
                    "print(1, flush=True); time.sleep(0.5)", tmp_path)  # fmt: skip
    assert holder.stdout and holder.stdout.readline()
    FolderLock(tmp_path, patience=20).release()
    assert holder.wait() == 0


def test_a_mistake_leaves_no_folder_and_results_stay(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "test" / "exp"
    for exist_ok in (False, True):
        with pytest.raises(UserError, match="mistake"), output_folder(path, exist_ok):
            raise UserError("mistake")
        assert not (tmp_path / "runs").exists()
    for number in ("", "2"):
        with pytest.raises(KeyboardInterrupt), output_folder(path) as folder:
            (folder / "results.json").write_text("{}")
            raise KeyboardInterrupt
        assert [child.name for child in (path.parent / f"exp{number}").iterdir()] == ["results.json"]
    with output_folder(tmp_path / "other", active=False) as folder:
        assert not folder.exists()


def test_drafts_of_the_dead_are_removed_and_those_of_the_living_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = python("")
    dead.communicate()
    (tmp_path / "weights").mkdir()
    monkeypatch.setattr(utils.paths.os, "getpid", lambda: dead.pid)
    draft = utils.paths._draft_name("last.pt")
    monkeypatch.undo()
    monkeypatch.setattr(utils.paths.socket, "gethostname", lambda: "elsewhere")
    foreign, old = utils.paths._draft_name("best.pt"), utils.paths._draft_name("hyp.yaml")
    monkeypatch.undo()
    theirs = [f"weights/{draft}", f".results.csv.{dead.pid}.tmp", f"a.jpg.by2.npy.{dead.pid}", old]
    kept = [utils.paths._draft_name("opt.yaml"), foreign, ".notes.tmp", "x.2024", "last.pt"]
    for name in (*theirs, *kept):
        (tmp_path / name).write_text("")
    os.utime(tmp_path / old, (0, 0))
    remove_run_drafts(tmp_path)
    assert sorted(child.name for child in tmp_path.iterdir()) == sorted([*kept, "weights"])
    assert not list((tmp_path / "weights").iterdir())
    remove_dead_drafts(tmp_path / "nowhere")


@needs_posix
def test_what_a_killed_writer_leaves_is_a_draft_that_goes(tmp_path: Path) -> None:
    code = "import os, sys; from utils.paths import replacing\n"
    code += "with replacing(sys.argv[1]) as stream: stream.write('x'); os.kill(os.getpid(), 9)"
    python(code, tmp_path / "last.pt").communicate()
    assert len(list(tmp_path.iterdir())) == 1
    remove_dead_drafts(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["n" * 255, "名" * 85, "x" * 251 + ".txt"])
def test_the_longest_names_can_be_written(tmp_path: Path, name: str) -> None:
    with replacing(tmp_path / name) as stream:
        stream.write("content")
    assert [(child.name, child.read_text()) for child in tmp_path.iterdir()] == [(name, "content")]


def test_text_that_utf8_does_not_have_is_written_as_an_escape(tmp_path: Path) -> None:
    with replacing(tmp_path / "list.txt") as stream:
        stream.write("bild\udce9.jpg 名\n")
    assert (tmp_path / "list.txt").read_text(encoding="utf-8") == "bild\\udce9.jpg 名\n"


def test_an_error_names_the_file_that_it_is_about(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught, replacing(tmp_path / "nowhere" / "x.txt"):
        pass
    assert caught.value.filename == str(tmp_path / "nowhere" / "x.txt")
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "x.txt"):
        (tmp_path / "other.txt").read_bytes()
    assert Path(caught.value.filename).name == "other.txt"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_no_file_takes_the_place_of_a_device(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="it is a device or a pipe"), replacing(tmp_path / "pipe"):
        pass
    assert (tmp_path / "pipe").is_fifo() and len(list(tmp_path.iterdir())) == 1
