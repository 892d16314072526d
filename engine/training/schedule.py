"""The learning rate over a training: a cosine or a line over the epochs, after a warm-up counted in iterations."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from engine.config.hyp import AUTO, Hyp

NOMINAL_BATCH, LEAST_BATCH = 64, 16
ENOUGH_STEPS = 10_000  # optimizer steps, from which on a training can afford batches of 64 images
LONGEST_RAMP, RAMP_SHARE = 2000.0, 5


def num_steps(nbs: float, epochs: int, batches_per_epoch: int, batch_size: int) -> int:
    """Optimizer steps of a training, the shorter accumulation of its warm-up left out."""
    return epochs * batches_per_epoch // max(round(nbs / batch_size), 1)


def resolve_auto(hyp: Hyp, epochs: int, batches_per_epoch: int, batch_size: int) -> tuple[Hyp, str]:
    """Puts numbers where hyper-parameters say `auto`.

    On few images the nominal batch of 64 makes few steps, and an average that follows them slowly is not one of what
    was learned. `nbs` becomes 64 where that makes 10,000 steps, else the batch size, at least 16; `ema_ramp` a fifth of
    the steps, at most 2000.

    Args:
        hyp: any.
        epochs: length of the training.
        batches_per_epoch: iterations in an epoch.
        batch_size: images of an iteration over all processes.

    Returns:
        The hyper-parameters, and one line that says what was chosen; empty where nothing was to be.
    """
    length = epochs, batches_per_epoch, batch_size
    nbs, ramp, chosen = hyp.nbs, hyp.ema_ramp, []
    if nbs == AUTO:
        enough = num_steps(NOMINAL_BATCH, *length) >= ENOUGH_STEPS
        nbs = NOMINAL_BATCH if enough else max(batch_size, LEAST_BATCH)
        chosen.append(f"nbs is {nbs}")
    steps = num_steps(float(nbs), *length)
    if ramp == AUTO:
        ramp = min(LONGEST_RAMP, max(steps / RAMP_SHARE, 1.0))
        chosen.append(f"ema_ramp is {ramp:g}")
    line = f"chosen by the length of the training, {steps:,} optimizer steps: {', '.join(chosen)}" if chosen else ""
    return replace(hyp, nbs=nbs, ema_ramp=ramp), line


def lr_factor(epoch: float, epochs: int, lrf: float, linear: bool = False) -> float:
    """Multiplier of lr0 at an epoch, from 1 at the start to `lrf` at `epochs`.

    Args:
        epoch: 0-based epoch.
        epochs: length of the training, at least 1.
        lrf: final factor.
        linear: a line instead of the half cosine of Loshchilov & Hutter (arXiv 1608.03983).
    """
    done = min(epoch / epochs, 1.0)
    if linear:
        return (1 - done) * (1 - lrf) + lrf
    return (1 - math.cos(math.pi * done)) / 2 * (lrf - 1) + 1


@dataclass(frozen=True)
class StepPlan:
    """What the optimizer is set to before an iteration.

    Attributes:
        lr: learning rate of weights.
        bias_lr: learning rate of biases, which fall to `lr` during the warm-up instead of rising.
        momentum: momentum (the first beta of Adam).
        accumulate: batches between two optimizer steps.
    """

    lr: float
    bias_lr: float
    momentum: float
    accumulate: int


class LearningSchedule:
    """Learning rates, momentum and accumulation of every iteration, without any state of its own.

    Args:
        hyp: hyper-parameters, `nbs` a number.
        epochs: length of the training.
        batches_per_epoch: iterations in an epoch.
        batch_size: images of a step over all processes.
        linear: see `lr_factor`.
    """

    MIN_WARMUP_ITERATIONS = 100

    def __init__(
        self,
        hyp: Hyp,
        epochs: int,
        batches_per_epoch: int,
        batch_size: int,
        linear: bool = False,
    ) -> None:
        self.hyp = hyp
        self.epochs = epochs
        self.linear = linear
        self.batches_per_epoch = batches_per_epoch
        nbs = float(hyp.nbs)
        self.nominal_ratio = nbs / batch_size
        self.accumulate = max(round(self.nominal_ratio), 1)
        self.weight_decay = hyp.weight_decay * batch_size * self.accumulate / nbs
        # The least length protects small data sets, but must not swallow a short training.
        least = min(self.MIN_WARMUP_ITERATIONS, epochs * batches_per_epoch // 3)
        wanted = round(hyp.warmup_epochs * batches_per_epoch)
        self.warmup_iterations = max(wanted, least) if hyp.warmup_epochs > 0 else 0

    def at(self, epoch: int, iteration: int) -> StepPlan:
        """The plan for an iteration counted from the start of the training."""
        hyp = self.hyp
        lr = hyp.lr0 * lr_factor(epoch, self.epochs, hyp.lrf, self.linear)
        if iteration > self.warmup_iterations or self.warmup_iterations == 0:
            return StepPlan(lr, lr, hyp.momentum, self.accumulate)
        span = [0, self.warmup_iterations]
        accumulate = max(1, round(float(np.interp(iteration, span, [1, self.nominal_ratio]))))
        return StepPlan(
            lr=float(np.interp(iteration, span, [0.0, lr])),
            bias_lr=float(np.interp(iteration, span, [hyp.warmup_bias_lr, lr])),
            momentum=float(np.interp(iteration, span, [hyp.warmup_momentum, hyp.momentum])),
            accumulate=accumulate,
        )
