"""Taking weights from one state dict into a model, and saying exactly which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class TransferReport:
    """Which tensors of a model came from a checkpoint.

    Attributes:
        taken: keys that were copied.
        mismatched: (key, shape in the checkpoint, shape in the model) of keys that both have with different shapes.
        missing: keys that only the model has, those with a wrong shape not among them.
        unused: keys that only the checkpoint has.
        excluded: keys that were left out on request.
    """

    taken: tuple[str, ...]
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    excluded: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every tensor of the model was filled."""
        return not (self.mismatched or self.missing or self.excluded)

    def describe(self, most: int = 4) -> str:
        """A short text: how many tensors were taken, and the first ones that were not with the reason."""
        total = len(self.taken) + len(self.mismatched) + len(self.missing) + len(self.excluded)
        lines = [f"took {len(self.taken)} of the model's {total} tensors from the checkpoint"]
        shapes = [f"{key} {_shape(theirs)} -> {_shape(ours)}" for key, theirs, ours in self.mismatched]
        for kind, keys in (
            ("other shape in the checkpoint, left as built", shapes),
            ("not in the checkpoint, left as built", list(self.missing)),
            ("left out on request", list(self.excluded)),
            ("in the checkpoint but not in the model", list(self.unused)),
        ):
            if keys:
                more = f", ... ({len(keys)} in all)" if len(keys) > most else ""
                lines.append(f"  {kind}: {', '.join(keys[:most])}{more}")
        return "\n".join(lines)


def transfer_weights(
    model: nn.Module, state_dict: Mapping[str, torch.Tensor], exclude: Sequence[str] = ()
) -> TransferReport:
    """Copies every tensor that fits by key and shape into a model.

    Args:
        model: filled in place.
        state_dict: where the tensors come from.
        exclude: a tensor whose key contains one of these texts is left as built.
    """
    taken, mismatched, missing, excluded = [], [], [], []
    own = model.state_dict()  # the tensors share memory with the model's
    for key, target in own.items():
        if any(text in key for text in exclude):
            excluded.append(key)
        elif key not in state_dict:
            missing.append(key)
        elif state_dict[key].shape != target.shape:
            mismatched.append((key, tuple(state_dict[key].shape), tuple(target.shape)))
        else:
            target.copy_(state_dict[key])
            taken.append(key)
    unused = tuple(key for key in state_dict if key not in own)
    return TransferReport(tuple(taken), tuple(mismatched), tuple(missing), unused, tuple(excluded))


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
