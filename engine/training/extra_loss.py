"""What plugs into the training loop: a loss beside the detection loss, and what it finds on the first batch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Protocol

from torch import Tensor


class Finding(Protocol):
    """What an extra loss says of itself before the first step.

    Attributes:
        table: how strong each of its parts is, as text.
        warnings: what is wrong, a line each.
        silent: names of the parts that are 0 by nature.
    """

    @property
    def table(self) -> str: ...

    @property
    def warnings(self) -> Sequence[str]: ...

    @property
    def silent(self) -> Collection[str]: ...


class ExtraLoss(Protocol):
    """A further loss beside the detection loss, such as a distiller.

    Its own parameters are trained with the model's, by the same optimizer, from the first step.
    """

    layers: Sequence[int]

    def __call__(
        self, images: Tensor, predictions: Any, features: list[Tensor], targets: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to add, already multiplied by the batch size, and its named parts."""

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Called before the first batch of an epoch."""

    def epoch_row(self) -> dict[str, float]:
        """Further columns of the results for this epoch, such as the factor of a schedule."""

    def preflight(
        self,
        images: Tensor,
        predictions: Any,
        features: list[Tensor],
        targets: Tensor,
        detection_loss: Tensor,
        parameters: Iterable[Tensor] = (),
    ) -> Finding:
        """Called with the first batch of a training: a table of how strong each part is, and what is wrong.

        Must not change anything. The detection loss comes with its graph, so that gradients of the model's `parameters`
        can be compared; without any, they cannot be had.
        """
