"""Very small detectors that find a dozen different things, as models and as checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from checkpoints.checkpoint import save_checkpoint
from engine.exporting.check import sample_images
from models.yolo import Model
from tests.unit.models.architectures import TINY

LOGIT_DEVIATION = 0.6
NAMES = ["cat", "dög", "bird: 'small'"]


def detector(family: str, names: list[str] = NAMES, **changes: Any) -> Model:
    """A model of random weights in evaluation, not folded in any way.

    The last convolutions are scaled so that every logit has mean 0 and standard deviation 0.6 over an image, and each
    BatchNorm has that image's statistics: otherwise all cells of a random network say nearly the same.
    """
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = Model(TINY[family](nc=len(names), **changes)).eval()
        image = sample_images((1, 3, 128, 128), seed=100)
        norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        last = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d) and m.bias is not None]
        for conv in last:
            torch.nn.init.normal_(conv.weight)
            conv.register_forward_hook(_standardise)
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad():
            model.train()(image)
            model.eval()(image)
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
        for conv in last:
            conv._forward_hooks.clear()
    model.names = list(names)
    return model


def _standardise(conv: torch.nn.Conv2d, inputs: Any, output: torch.Tensor) -> None:
    deviation, mean = torch.std_mean(output, (0, 2, 3))  # (C,)
    assert conv.bias is not None
    conv.weight.mul_((LOGIT_DEVIATION / deviation).view(-1, 1, 1, 1))
    conv.bias.copy_((conv.bias - mean) * LOGIT_DEVIATION / deviation)


def write_checkpoint(path: Path, model: Model) -> Path:
    """A finished run's checkpoint of the model."""
    entry = {
        "yaml": model.yaml, "state_dict": model.state_dict(), "names": model.names, "nc": model.nc,
        "stride": model.stride.tolist(), "family": model.family,
    }  # fmt: skip
    save_checkpoint(path, {"model": entry, "epoch": -1})
    return path
