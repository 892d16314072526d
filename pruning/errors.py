"""The error of this package."""

from __future__ import annotations


class PruneError(ValueError):
    """A model, a target or an option that pruning cannot work with; one line: what, where, remedy."""

    exit_code = 1
