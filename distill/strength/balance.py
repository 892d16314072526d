"""Weights that set themselves: factors under which each loss has its share of the detection loss's gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DistillError
from ..losses import LOSSES
from ..report import format_table
from .gradients import labelled_anywhere, squared_norms
from .mixture import Portion

BEGINNING = 20
"""Labelled batches over which a factor follows the geometric mean of all that was measured."""
AN_EPOCH = 4
"""Labelled batches at the start of each later epoch that are measured."""
MAX_CHANGE = 2.0
"""Largest change of a factor in one of the later epochs."""
MAX_EXCESS = 10.0
"""Ratio to its share from which on a portion is warned of, where it stays there for a whole epoch."""


class Balance(nn.Module):
    """Keeps, for each portion that asks for a share, the factor that gives it.

    With r the ratio of the norms of gradients, the portion's at weight 1 to the detection loss's, a factor is
    share / r. Over the first `BEGINNING` labelled batches it is the geometric mean of those so far, from the first
    batch on. In each later epoch the first `AN_EPOCH` labelled batches are measured, after which the factor goes half
    of the way, in the logarithm, to their geometric mean, at most by `MAX_CHANGE`; an epoch of fewer batches counts at
    its end. Until a first labelled batch a factor is 0. All that this needs are buffers, so a training that is resumed
    goes on as it would have.

    Args:
        portions: that have shares.

    Attributes:
        factors: (P,) float32.
        log_sums: (P,) sums of log(share / r) of the beginning, or of the present epoch.
        counts: (P,) labelled batches of the beginning that were measured.
        epoch_counts: (P,) those of the present epoch, after the beginning.
    """

    factors: Tensor
    log_sums: Tensor
    counts: Tensor
    epoch_counts: Tensor

    def __init__(self, portions: Sequence[Portion]) -> None:
        super().__init__()
        self.portions = tuple(portions)
        self.register_buffer("factors", torch.zeros(len(portions)))
        self.register_buffer("log_sums", torch.zeros(len(portions)))
        self.register_buffer("counts", torch.zeros(len(portions), dtype=torch.int64))
        self.register_buffer("epoch_counts", torch.zeros(len(portions), dtype=torch.int64))
        self._reached: list[list[float]] = [[] for _ in portions]
        self._due: bool | None = None  # read from the device once, not at every step
        self.register_load_state_dict_post_hook(_forget_due)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """States of before there were shares have no factors: they are found anew."""
        for name, value in self.named_buffers():
            state_dict.setdefault(prefix + name, torch.zeros_like(value))
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def due(self) -> bool:
        """Whether the next labelled batch is to be measured."""
        if self._due is None:
            counts = zip(self.counts.tolist(), self.epoch_counts.tolist())
            self._due = any(done < BEGINNING or lately < AN_EPOCH for done, lately in counts)
        return self._due

    @property
    def known(self) -> bool:
        """Whether a labelled batch was there, so that there are factors."""
        return bool((self.counts > 0).all())

    def weights(self, guess: bool = False) -> Tensor:
        """(P,) the factors; with `guess`, the shares themselves in place of those that are not known yet."""
        if not guess:
            return self.factors
        shares = self.factors.new_tensor([portion.amount for portion in self.portions])
        return torch.where(self.counts > 0, self.factors, shares)

    def start_epoch(self) -> None:
        """Closes an epoch of fewer than `AN_EPOCH` labelled batches, and begins the next."""
        state = self._read()
        for index, (done, lately) in enumerate(zip(state["counts"], state["epoch_counts"])):
            if done >= BEGINNING and 0 < lately < AN_EPOCH:
                _settle(state, index)
            if done >= BEGINNING:
                state["epoch_counts"][index] = 0
        self._write(state)
        self._reached = [[] for _ in self.portions]

    def measure(
        self,
        values: Mapping[str, Mapping[str, Tensor]],
        points: Mapping[str, Sequence[Tensor]],
        detection: Tensor,
        labels: Tensor,
        layers: Mapping[str, Sequence[int | str]],
    ) -> None:
        """Measures a batch, and lets the factors follow; nothing where no process has a labelled box.

        Args:
            values: the terms of each loss at weight 1, with their graphs.
            points: for losses on "features" and on "predictions", the student's maps at which gradients are compared.
            detection: the detection loss of an image, as a function of the same maps.
            labels: how many boxes this process has, as a number on the device.
            layers: names of the points, for messages.

        Raises:
            DistillError: a portion that has no factor yet has no gradient, or one that is not finite.
        """
        if not labelled_anywhere(labels):
            return
        needs = [LOSSES[portion.entry].needs for portion in self.portions]
        kinds = list(dict.fromkeys(needs))
        sums = [torch.stack([values[p.entry][term] for term in p.terms]).sum() for p in self.portions]
        both = [(detection, points[kind]) for kind in kinds] + [(x, points[kind]) for x, kind in zip(sums, needs)]
        squares = squared_norms(both)
        pulls = dict(zip(kinds, squares))
        ratios = []
        for portion, own, kind, done in zip(self.portions, squares[len(kinds) :], needs, self.counts.tolist()):
            if not done:
                _check_gradients(portion, own, pulls[kind], layers[kind])
            usable = _is_pull(own) and _is_pull(pulls[kind])
            ratios.append(math.sqrt(own / pulls[kind]) if usable else math.nan)
        self.update(ratios)

    def update(self, ratios: Sequence[float]) -> None:
        """Lets the factors follow one labelled batch.

        Args:
            ratios: of each portion at weight 1; NaN for one that this batch says nothing of.
        """
        state = self._read()
        for index, (portion, ratio) in enumerate(zip(self.portions, ratios)):
            if math.isnan(ratio):
                continue
            wanted = math.log(portion.amount / ratio)
            if state["counts"][index] < BEGINNING:
                state["counts"][index] += 1
                state["log_sums"][index] += wanted
                state["factors"][index] = math.exp(state["log_sums"][index] / state["counts"][index])
                if state["counts"][index] == BEGINNING:
                    state["log_sums"][index], state["epoch_counts"][index] = 0.0, AN_EPOCH
            elif state["epoch_counts"][index] < AN_EPOCH:
                state["epoch_counts"][index] += 1
                state["log_sums"][index] += wanted
                if state["epoch_counts"][index] == AN_EPOCH:
                    _settle(state, index)
        self._write(state)
        for reached, factor, ratio in zip(self._reached, self.factors.tolist(), ratios):
            if not math.isnan(ratio):
                reached.append(factor * ratio)

    def _read(self) -> dict[str, list[Any]]:
        return {name: value.tolist() for name, value in self.named_buffers()}

    def _write(self, state: dict[str, list[Any]]) -> None:
        for name, value in self.named_buffers():
            value.copy_(torch.tensor(state[name], dtype=value.dtype))
        self._due = None

    def table(self) -> str:
        """The portions with their shares, for the first batch of a training."""
        if not self.known:
            return "no labelled box is in this batch: weights follow from the first one that has some"
        rows = [["share of", "asked for", "weight found", "reached"]]
        for portion, factor, reached in zip(self.portions, self.factors.tolist(), self._reached):
            latest = f"{reached[-1]:.3g}" if reached else "-"
            rows.append([portion.name, f"{portion.amount:g}", f"{factor:.4g}", latest])
        return format_table(rows)

    def row(self, prefix: str) -> dict[str, float]:
        """For the log: the shares that this epoch's batches reached (before any schedule), and the factors."""
        shares = {
            f"share/{prefix}/{portion.name}": math.exp(sum(map(math.log, reached)) / len(reached))
            for portion, reached in zip(self.portions, self._reached)
            if reached
        }
        factors = zip(self.portions, self.factors.tolist())
        return shares | {f"factor/{prefix}/{portion.name}": factor for portion, factor in factors}

    def excesses(self) -> list[str]:
        """Portions that were far above their shares in every batch of this epoch that was measured."""
        return [
            f"the gradient of {portion.name} was at least {min(reached):.3g} of the detection loss's, where "
            f"{portion.amount:g} is asked for; look at the teacher and the learning rate, or lower its share"
            for portion, reached in zip(self.portions, self._reached)
            if reached and min(reached) > MAX_EXCESS * portion.amount
        ]


def _forget_due(module: nn.Module, incompatible_keys: Any) -> None:
    del incompatible_keys
    module._due = None  # type: ignore[assignment]


def _settle(state: dict[str, list[Any]], index: int) -> None:
    """Half of the way to the mean of an epoch's batches, at most `MAX_CHANGE`."""
    old = math.log(state["factors"][index])
    step = (state["log_sums"][index] / state["epoch_counts"][index] - old) / 2
    limit = math.log(MAX_CHANGE)
    state["factors"][index] = math.exp(old + min(max(step, -limit), limit))
    state["log_sums"][index] = 0.0


def _is_pull(square: float) -> bool:
    return 0 < square < math.inf


def _check_gradients(portion: Portion, own: float, detection: float, layers: Sequence[int | str]) -> None:
    where = f"kd_losses.{portion.name.replace('/', ': share of ')}"
    at = f"at the student's layers {list(layers)}"
    for square, whose in ((detection, "the detection loss's"), (own, "its")):
        if _is_pull(square):
            continue
        found = "0" if square == 0 else "not finite"
        remedy = (
            "choose layers that feed the student's head"
            if whose != "its"
            else "look at its keywords and the teacher's weights"
        )
        raise DistillError(f"{where}: {whose} gradient {at} is {found}, so no share of it can be had; {remedy}")
