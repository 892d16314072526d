"""One line for an error that is the machine's or the user's to mend: what, where, and the remedy."""

from __future__ import annotations

import errno
import os
import re

from utils.running.processes import causes
from utils.text import MAX_PATH_SHOWN, printable, shown_path

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MAX_LINE = 1000

GPU_FULL = "the GPU's memory is full; lower --batch-size or --img-size, or use another --device"
MEMORY_FULL = "the memory is full; lower --batch-size, --img-size or --workers"
OPEN_FILES = "too many open files; raise the limit (ulimit -n 65536), or use fewer --workers or --workers 0"
PROCESSES = "the system starts no further process or thread; lower --workers, or raise the limit (ulimit -u)"
SHARED_MEMORY = (
    "the shared memory (/dev/shm) is full, through which loader processes hand over images; use --workers 0 or a "
    "smaller --batch-size, or in Docker give more of it (docker run --shm-size=8g, or --ipc=host)"
)
# What libraries say in RuntimeErrors, also those of loader processes, which arrive as text. The first that fits counts.
SAYINGS = (
    (r"(CUDNN|CUBLAS)_STATUS_ALLOC_FAILED", GPU_FULL),
    (r"(DefaultCPUAllocator|Cannot allocate memory|ArrayMemoryError|Insufficient memory|\bMemoryError\b)", MEMORY_FULL),
    (r"(Too many open files|received \d+ items of ancdata)", OPEN_FILES),
    (r"can't start new thread", PROCESSES),
    (r"(shared memory|/torch_\w+|\bshm\b|insufficient shared memory)", SHARED_MEMORY),
)
LOADER_ENDED = re.compile(r"DataLoader worker \(pid\(?s?\)? ?([\d, ]+)\) (?:is killed by signal: ([\w ]+)|exited)")


def explain(error: BaseException) -> str:
    """One line for the user; empty for an error that is neither the user's nor the machine's."""
    # A loader process that dies interrupts whatever is being done, and turns into an error of that: look for it first.
    deaths = (LOADER_ENDED.search(str(each)) for each in causes(error) if isinstance(each, RuntimeError))
    ended = [match for match in deaths if match]
    if ended:
        match = next((match for match in ended if match[2]), ended[0])
        return _with_advice(_loader_ended(match[1], match[2] or ""), error)
    if hasattr(error, "exit_code"):  # a UserError, or the error of a package that imports nothing of ours
        return one_line(str(error))
    line = _of_system(error) if isinstance(error, OSError) else ""
    if type(error).__name__ == "OutOfMemoryError":
        line = GPU_FULL
    elif isinstance(error, MemoryError):
        line = MEMORY_FULL
    elif not line and (isinstance(error, RuntimeError | OSError) or type(error).__name__ == "error"):  # OpenCV's
        line = next((told for pattern, told in SAYINGS if re.search(pattern, str(error))), "")
    return one_line(_with_advice(line, error))


def advice(error: BaseException) -> str:
    """How the user goes on, as noted by `utils.running.processes.advise`, with what joins it to a line; or nothing."""
    told = next((told for each in causes(error) if (told := getattr(each, "remedy", ""))), "")
    return f"; {told}" if told else ""


def one_line(text: str) -> str:
    """A message of any length as one line; of a very long one the beginning, and the end, where the remedy stands."""
    line = " ".join(part.strip() for part in text.splitlines() if part.strip())
    if len(line) > MAX_LINE:
        end = MAX_LINE // 3
        line = f"{line[: MAX_LINE - end - 5]} ... {line[-end:]}"
    return line


def _with_advice(line: str, error: BaseException) -> str:
    return line and line + advice(error)


def _of_system(error: OSError) -> str:
    if error.errno in DISK_FULL:
        where = f" while writing {printable(error.filename, MAX_PATH_SHOWN)}" if error.filename else ""
        return f"the disk is full{where}; free some space, or write elsewhere with --project"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return OPEN_FILES
    if error.errno == errno.ENOMEM:
        return MEMORY_FULL
    if error.errno == errno.EAGAIN and not error.filename:
        return PROCESSES
    if error.filename is not None and error.strerror:  # a file or folder of the user's
        path = error.filename if isinstance(error.filename, str) else os.fsdecode(str(error.filename))
        return f"cannot use {shown_path(path)}: {error.strerror}; choose another place or change its rights"
    if error.errno == errno.ENOENT and not _has_current_folder():
        return "the folder that this was started in is gone; change to one that exists"
    return ""


def _has_current_folder() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def _loader_ended(process: str, signal_name: str) -> str:
    if signal_name == "Bus error":
        return SHARED_MEMORY
    if signal_name in ("Segmentation fault", "Aborted", "Floating point exception", "Illegal instruction"):
        return (
            f"a process that loads images (pid {process}) crashed ({signal_name}); --workers 0 shows at which image, "
            "and python -m data.audit lists broken files"
        )
    if signal_name not in ("Killed", ""):
        return f"a process that loads images (pid {process}) was ended from outside ({signal_name})"
    reason = "most likely because the memory is full; lower --workers or --batch-size"
    return f"a process that loads images (pid {process}) {'was killed' if signal_name else 'died'}, {reason}"
