"""Where gradients are compared: the student's maps at which a loss's pull is measured beside the detection loss's."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DistillError
from ..losses import LOSSES
from ..pairing import Layers, head_inputs
from ..taps import HookTap, Tap, make_tap, unwrap
from .mixture import Portion

Places = dict[str, list[int]]
"""For losses on "features" and on "predictions", which of the tapped maps they are measured at."""


def tap_points(
    student: nn.Module, tap: Tap, student_layers: Layers, taps: str, shares: Sequence[Portion]
) -> tuple[Tap, Places]:
    """A tap that has what feeds the student's head besides, where a loss on the output has a share.

    There, and not at the tapped layers: of layers that reach the head by way of others only (75, 88, 101 of yolov7)
    such a loss has a gradient as well, but one that differs from the detection loss's by what lies between.

    Args:
        student, student_layers, taps: as for the distiller.
        tap: of the layers that losses on features compare.
        shares: the portions that have shares.

    Raises:
        DistillError: the layers that feed the head cannot be found.
    """
    places: Places = {"features": list(range(len(tap.layers)))}
    needing = [portion.entry for portion in shares if LOSSES[portion.entry].needs == "predictions"]
    if not needing:
        return tap, places
    inputs: list[int | str] = [] if isinstance(student_layers, str) else list(student_layers)
    if taps != "hooks":
        with contextlib.suppress(DistillError):  # the layers that are listed have to do
            inputs = head_inputs(student, "student")[0]
    if not inputs:
        raise DistillError(
            f"kd_losses.{needing[0]}: a share is measured at the layers that feed the student's head, which cannot be "
            "found here; list them as student_kd_layers, or give a weight"
        )
    if isinstance(tap, HookTap):
        tap.close()
    layers = [*tap.layers, *(layer for layer in inputs if layer not in tap.layers)]
    places["predictions"] = [layers.index(layer) for layer in inputs]
    return make_tap(taps, student, layers, "student"), places


class EagerStudent:
    """The student once more, as it is and not compiled.

    The outputs of a compiled network all come from one node of the graph, so no gradient can be had at a layer between.
    It is no module, so the student appears in no module tree.
    """

    def __init__(self, student: nn.Module) -> None:
        self.model = unwrap(student)

    def look(self, tap: Tap, images: Tensor) -> tuple[Any, list[Tensor]]:
        """Its output and tapped maps, with gradients; neither its buffers nor the random stream move."""
        buffers = {name: value.clone() for name, value in self.model.named_buffers()}

        def run(*args: Any, **kwargs: Any) -> Any:
            return torch.func.functional_call(self.model, buffers, args, kwargs)

        with torch.random.fork_rng([images.device] if images.device.type == "cuda" else []):
            return tap.run(run, images)  # type: ignore[arg-type]
