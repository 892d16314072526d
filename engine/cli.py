"""What every command line shares: how it ends. Imports nothing heavy, so that --help is instant."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from typing import NoReturn

from utils.errors import UserError

NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR)


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Runs a command and ends the process with its exit code.

    A mistake of the user's is one line on stderr; an unexpected exception keeps its traceback. The exit code is what
    `main` returns, the error's own, 1 for a full disk or a full GPU, or 130 for an interruption.

    Args:
        main: the command; parses `sys.argv` itself and may return an exit code.
    """
    try:
        code = main() or 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except Exception as error:
        line, code = _explain(error)
        if not line:
            raise
        print(f"error: {line}", file=sys.stderr)
    sys.exit(code)


def _explain(error: Exception) -> tuple[str, int]:
    """One line for the user and an exit code; no line for an error that is not the user's to mend."""
    if isinstance(error, UserError):
        return str(error), error.exit_code
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = f" while writing {error.filename}" if error.filename else ""
        return f"the disk is full{where}; free some space, or write elsewhere with --project", 1
    if isinstance(error, OSError) and error.errno in NOT_ALLOWED and error.filename:
        return f"cannot use {str(error.filename)!r}: {error.strerror}; choose another place or change its rights", 1
    if type(error).__name__ == "OutOfMemoryError":
        return "the GPU's memory is full; lower --batch-size or --img-size, or use another --device", 1
    if isinstance(error, ValueError):
        from distill.errors import DistillError

        if isinstance(error, DistillError):
            return str(error), 1
    return "", 0
