"""The YOLOv7 loss for heads with auxiliary outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from losses.anchor_based import Terms
from losses.simota import SimOTALoss


class SimOTAAuxLoss(SimOTALoss):
    """SimOTA for the lead outputs, and for the auxiliary ones with a coarser choice of cells (Wang et al. 2022).

    Both assignments are judged by the lead predictions. `forward(predictions, targets)` takes 2 * L maps, the lead ones
    first; otherwise as `SimOTALoss`.

    Args:
        anchors: as for `AnchorLoss`.
        strides: L, as for `AnchorLoss`.
        num_classes: as for `AnchorLoss`.
        topk: number of IoUs that estimate how many cells a box takes.
        aux_gain: factor of the auxiliary terms.
        settings: the other keywords of `SimOTALoss`.
    """

    def __init__(
        self,
        anchors: Tensor,
        strides: Sequence[float] | Tensor,
        num_classes: int,
        *,
        topk: int = 20,
        aux_gain: float = 0.25,
        **settings: Any,
    ) -> None:
        super().__init__(anchors, strides, num_classes, topk=topk, **settings)
        self.aux_gain = aux_gain

    def forward(self, predictions: Sequence[Tensor], targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        self.check_inputs(predictions, targets, 2 * self.num_levels)
        lead, auxiliary = predictions[: self.num_levels], predictions[self.num_levels :]
        with torch.autocast(lead[0].device.type, enabled=False):
            lead_terms = self.terms(lead, self.assign_cells(lead, targets))
            aux_terms = self.terms(auxiliary, self.assign_cells(lead, targets, reach=1.0))
            terms = Terms(*(main + self.aux_gain * more for main, more in zip(lead_terms, aux_terms)))
            return self.total(terms, len(lead[0]))
