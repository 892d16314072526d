"""Kullback-Leibler divergences of softened distributions, shared by several methods."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def softened_kl(student: Tensor, teacher: Tensor, temperature: float, dim: int = -1) -> Tensor:
    """Summands of T^2 * KL(softmax(teacher / T) || softmax(student / T)); sum over `dim` for the divergence.

    T^2 keeps gradients of equal size at every temperature (Hinton et al., arXiv 1503.02531). Everything stays in
    logarithms: probabilities may underflow.

    Args:
        student, teacher: logits of one shape.
        temperature: T.
        dim: the dimension of the distributions.
    """
    log_s = (student / temperature).log_softmax(dim)
    log_t = (teacher / temperature).log_softmax(dim)
    return temperature**2 * F.kl_div(log_s, log_t, reduction="none", log_target=True)


def softened_binary_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 * KL of independent yes-or-no probabilities p = sigmoid(logit / T), element by element.

    The gradient is T * (p_s - p_t). It is the cross-entropy less the teacher's own entropy, hence exactly 0 for equal
    logits.
    """
    soft_target = (teacher / temperature).sigmoid()
    cross = F.binary_cross_entropy_with_logits(student / temperature, soft_target, reduction="none")
    entropy = F.binary_cross_entropy_with_logits(teacher / temperature, soft_target, reduction="none")
    return temperature**2 * (cross - entropy)
