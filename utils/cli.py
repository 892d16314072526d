"""What every command line shares: the parser of its flags and how it ends. Light, so that --help is instant."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable
from typing import NoReturn

from utils.errors import UsageError, nearest

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR)
UNKNOWN_FLAGS = "unrecognized arguments: "


class CommandParser(argparse.ArgumentParser):
    """A parser whose complaints are one line each, as every other mistake's, instead of the usage of all flags."""

    def error(self, message: str) -> NoReturn:
        """Raises the UsageError of a mistake in the flags; for an unknown flag it names the nearest known one."""
        remedy = f"{self.prog} --help lists the flags"
        if message.startswith(UNKNOWN_FLAGS):
            flag = message.removeprefix(UNKNOWN_FLAGS).split()[0]
            guess = nearest(flag, self._option_string_actions)
            remedy = f"did you mean {guess}? ({remedy})" if guess else remedy
        raise UsageError(f"{message}; {remedy}")


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Runs a command and ends the process with its exit code.

    A mistake of the user's is one line on stderr; an unexpected exception keeps its traceback. The exit code is what
    `main` returns, the error's own, 1 for a full disk or full memory, or 130 for an interruption.

    Args:
        main: the command; parses `sys.argv` itself and may return an exit code.
    """
    try:
        code = main() or 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except Exception as error:
        line = _explain(error)
        if not line:
            raise
        print(f"error: {line}", file=sys.stderr)
        code = getattr(error, "exit_code", 1)
    sys.exit(code)


def _explain(error: Exception) -> str:
    """One line for the user; empty for an error that is not the user's to mend."""
    if hasattr(error, "exit_code"):  # a UserError, or the error of a package that imports nothing of ours
        return str(error)
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        where = f" while writing {error.filename}" if error.filename else ""
        return f"the disk is full{where}; free some space, or write elsewhere with --project"
    if isinstance(error, OSError) and error.errno in NOT_ALLOWED and error.filename:
        return f"cannot use {str(error.filename)!r}: {error.strerror}; choose another place or change its rights"
    if type(error).__name__ == "OutOfMemoryError":
        return "the GPU's memory is full; lower --batch-size or --img-size, or use another --device"
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
        return "the memory is full; lower --batch-size, --img-size or --workers"
    return ""
