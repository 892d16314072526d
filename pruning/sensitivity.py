"""How much each layer alone can lose."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from pruning.graph import Group
from pruning.importance import Importance, group_scores
from pruning.selection import removed_channels
from pruning.surgery import remove_channels


@dataclass(frozen=True)
class Sensitivity:
    """What is left of a model's quality when a share of one group's channels is gone."""

    layer: str
    channels: int
    share: float
    value: float


def sensitivity(
    model: nn.Module,
    groups: Sequence[Group],
    measure: Importance,
    evaluate: Callable[[nn.Module], float],
    shares: Sequence[float] = (0.25, 0.5, 0.75),
) -> Iterator[Sensitivity]:
    """Cuts one group at a time in a copy of the model, without repair, and evaluates it.

    Args:
        model: left as it is.
        groups: of this model; those that must stay are passed over.
        measure: which channels go first.
        evaluate: the quality of a model.
        shares: of the channels of the group.
    """
    free = [group for group in groups if not group.reason]
    scores: list[list[Tensor]] = group_scores(free, measure, "none")
    for number, group in enumerate(free):
        for share in shares:
            kept = max(round(group.size * (1 - share)), 1)
            pruned = copy.deepcopy(model)
            remove_channels(pruned, removed_channels(free, scores, {number: kept}))
            yield Sensitivity(group.name, group.size * len(group.segments), share, evaluate(pruned))
