"""Which channels go: from importances to widths that reach a target, with a floor and a rounding for every layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.errors import PruneError
from pruning.graph import Group


@dataclass(frozen=True)
class Step:
    """One cut: a group goes down to `kept` channels a segment; `score` is what the channels are worth."""

    group: int
    kept: int
    score: float


def possible_steps(
    groups: Sequence[Group], scores: Sequence[Sequence[Tensor]], *, scope: str, round_to: int, min_keep: float
) -> list[Step]:
    """Every cut that the floor and the rounding allow, in the order in which they are made.

    Args:
        groups: what is pruned; those that must stay are left out.
        scores: importance of each channel of each segment of each group.
        scope: "global" ranks the cuts of all groups by importance; "layer" shrinks all groups by the same share.
        round_to: widths become multiples of this.
        min_keep: share of a group that stays in any case.
    """
    steps: list[Step] = []
    for number, (group, values) in enumerate(zip(groups, scores)):
        if group.reason:
            continue
        ranked = torch.stack([value.sort().values for value in values]).mean(0)  # (n,) ascending
        least = max(math.ceil(group.size * min_keep / round_to) * round_to, round_to)
        top = (group.size - 1) // round_to * round_to
        before, worth = group.size, 0.0
        for kept in range(top, least - 1, -round_to):
            gone = slice(group.size - before, group.size - kept)
            # Never less than the cut before it, which must come first.
            worth = max(worth, float(ranked[gone].mean()) if scope == "global" else 1 - kept / group.size)
            steps.append(Step(number, kept, worth))
            before = kept
    return sorted(steps, key=lambda step: step.score)


def widths_after(steps: Sequence[Step], count: int) -> dict[int, int]:
    """Channels a segment that each group has left after the first `count` cuts; groups without a cut are left out."""
    return {step.group: step.kept for step in steps[:count]}


def fewest_steps(steps: Sequence[Step], reached: Callable[[dict[int, int]], float], target: float, what: str) -> int:
    """How many cuts reach a target.

    Args:
        steps: in the order in which they are made.
        reached: from widths to the share that is gone; grows with the cuts.
        target: the share that shall be gone.
        what: of what, for the error.

    Raises:
        PruneError: all cuts together do not reach it.
    """
    most = reached(widths_after(steps, len(steps)))
    if most < target:
        raise PruneError(
            f"the target of {target:g} of the {what} cannot be reached: at most {most:.3f} can go; "
            "lower the target, the floor of each layer (min_keep) or the rounding (round_to), or protect less"
        )
    low, high = 0, len(steps)
    while low < high:
        middle = (low + high) // 2
        if reached(widths_after(steps, middle)) >= target:
            high = middle
        else:
            low = middle + 1
    return low


def removed_channels(
    groups: Sequence[Group], scores: Sequence[Sequence[Tensor]], widths: dict[int, int]
) -> dict[tuple[str, str], Tensor]:
    """The channels that go at each side of each module, the least important of every group down to its width."""
    gone: dict[tuple[str, str], list[Tensor]] = {}
    for number, kept in widths.items():
        for segment, values in zip(groups[number].segments, scores[number]):
            lowest = values.sort(stable=True).indices[: segment.size - kept]
            for port, at in segment.places.items():
                gone.setdefault((port.name, port.side), []).append(at[lowest].flatten())
    return {place: torch.cat(indices) for place, indices in gone.items()}
