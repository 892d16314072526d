"""What plugs into the training loop: a loss beside the detection loss, and what it finds on the first batch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn


@dataclass(frozen=True)
class StepInputs:
    """What the loop knows of a batch once the network and the detection loss have seen it.

    Attributes:
        images: (N, 3, H, W), as the network saw them, 0..1.
        predictions: its raw head maps.
        features: the map of each layer that some extra loss asks for, by the layer's index.
        targets: (T, 6) rows [image, class, cx, cy, w, h], normalized.
        detection_loss: with its graph, multiplied by the number of images.
    """

    images: Tensor
    predictions: Sequence[Tensor]
    features: Mapping[int, Tensor]
    targets: Tensor
    detection_loss: Tensor


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

    Attributes:
        module: what it trains and keeps: its parameters are trained with the model's, by the same optimizer, from the
            first step.
    """

    module: nn.Module

    @property
    def layers(self) -> Sequence[int]:
        """The layers whose features it wants."""

    def __call__(self, step: StepInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to add, already multiplied by the batch size, and its named parts."""

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Called before the first batch of an epoch."""

    def epoch_row(self) -> dict[str, float]:
        """Further columns of the results for this epoch, such as the factor of a schedule."""

    def epoch_doubts(self, items: Mapping[str, float]) -> Sequence[str]:
        """Called after each epoch with the means of the loss's items: what was wrong with all of it, a line each."""

    def preflight(self, step: StepInputs, parameters: Iterable[Tensor] = ()) -> Finding:
        """Called with the first batch of a training: a table of how strong each part is, and what is wrong.

        Must not change anything. The detection loss comes with its graph, so that gradients of the model's `parameters`
        can be compared; without any, they cannot be had.
        """


class TensorLoss(Protocol):
    """A module that takes what it needs of a batch one by one, so that it need not know of the loop.

    `distill.Distiller` and `pruning.sparsity.SparsityLoss` are such modules. See `ExtraLoss` for what each method does.
    """

    @property
    def layers(self) -> Sequence[Any]: ...

    def __call__(
        self,
        images: Tensor,
        predictions: Sequence[Tensor],
        features: Sequence[Tensor],
        targets: Tensor,
        *,
        detection_loss: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]: ...

    def start_epoch(self, epoch: int, epochs: int) -> None: ...

    def epoch_row(self) -> dict[str, float]: ...

    def epoch_doubts(self, items: Mapping[str, float]) -> Sequence[str]: ...

    def preflight(
        self,
        images: Tensor,
        predictions: Sequence[Tensor],
        features: Sequence[Tensor],
        targets: Tensor,
        detection_loss: Tensor,
        parameters: Iterable[Tensor] = (),
    ) -> Finding: ...


class ModuleLoss:
    """A `TensorLoss` as an `ExtraLoss`.

    Args:
        loss: the module.

    Raises:
        TypeError: it is no module, so it could not be trained and kept.
    """

    def __init__(self, loss: TensorLoss) -> None:
        if not isinstance(loss, nn.Module):
            raise TypeError(f"an extra loss has to be a module, not {type(loss).__name__}")
        self.module: nn.Module = loss
        self._loss: TensorLoss = loss
        self.start_epoch = loss.start_epoch
        self.epoch_row = loss.epoch_row
        self.epoch_doubts = loss.epoch_doubts

    @property
    def layers(self) -> Sequence[int]:
        return self._loss.layers

    def __call__(self, step: StepInputs) -> tuple[Tensor, dict[str, Tensor]]:
        features = [step.features[layer] for layer in self.layers]
        loss = step.detection_loss
        return self._loss(step.images, step.predictions, features, step.targets, detection_loss=loss)

    def preflight(self, step: StepInputs, parameters: Iterable[Tensor] = ()) -> Finding:
        features = [step.features[layer] for layer in self.layers]
        loss = step.detection_loss
        return self._loss.preflight(step.images, step.predictions, features, step.targets, loss, parameters)
