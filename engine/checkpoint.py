"""The former name of the command `python -m checkpoints`, which still works."""

from __future__ import annotations

import sys

from checkpoints.__main__ import main
from utils.running.cli import run_command

if __name__ == "__main__":
    print("note: python -m engine.checkpoint is called python -m checkpoints now", file=sys.stderr)
    run_command(main)
