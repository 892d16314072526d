"""Attention transfer (Zagoruyko and Komodakis, ICLR 2017, arXiv 1612.03928)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ..context import DistillContext, DistillSetup
from ..errors import check_choice
from .base import FeatureLoss


def attention(x: Tensor) -> Tensor:
    """(N, H * W) mean of the squares over the channels, each image scaled to L2 norm 1."""
    return F.normalize(x.square().mean(1).flatten(1), dim=1)


def squared_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of the squared differences of the attentions, as the authors' code computes it."""
    return F.mse_loss(attention(student), attention(teacher))


def mean_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over the images of the distance between the attentions, as the paper writes it (without beta / 2)."""
    return (attention(student) - attention(teacher)).norm(dim=1).mean()


FORMS = {"code": squared_difference, "paper": mean_distance}


class AttentionTransfer(FeatureLoss):
    """Imitates where the teacher's features are strong. Channels may differ; there is no adapter.

    Args:
        setup: the pairs of layers.
        form: "code" or "paper", a name in `FORMS`.
        beta: factor of the loss; 1000 is the authors' for "code", whose values are tiny. For "paper" some 0.1 is
            comparable.
    """

    def __init__(self, setup: DistillSetup, *, form: str = "code", beta: float = 1000.0) -> None:
        super().__init__(setup, [nn.Identity() for _ in setup.levels])
        self.measure = FORMS[check_choice("form", form, FORMS, "kd_losses.at")]
        self.beta = beta

    def level_loss(self, index: int, student: Tensor, teacher: Tensor, context: DistillContext) -> Tensor:
        return self.beta * self.measure(student, teacher)
