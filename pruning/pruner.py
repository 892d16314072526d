"""Pruning a network to a target."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pruning.errors import PruneError
from pruning.graph import CONVOLUTIONS, Group, trace_groups
from pruning.importance import IMPORTANCES, Importance, Loss, Random, Taylor, group_scores
from pruning.selection import fewest_steps, possible_steps, removed_channels, widths_after
from pruning.size import Size, SizeModel, measure_latency
from pruning.surgery import remove_channels

TARGETS = ("gflops", "params", "channels", "latency")
SCOPES = ("global", "layer")
NORMALIZATIONS = ("mean", "max", "none")
TRACE_SIZE = 128
MAX_NAME = 60  # characters of a name that a message shows


@dataclass(frozen=True)
class LayerWidths:
    """A convolution's channels before and after, and why it was left as it is where it had to be."""

    name: str
    before: tuple[int, int]
    after: tuple[int, int]
    kept_for: str = ""


@dataclass(frozen=True)
class PruneResult:
    """What a pruning did.

    Attributes:
        layers: every convolution, in the order of the network.
        before, after: the size of the network.
        share: how much is gone of what the target is of: as asked or a little more.
        removed: (module or parameter, side) -> indices of the channels that are gone there.
    """

    layers: list[LayerWidths]
    before: Size
    after: Size
    share: float
    removed: dict[tuple[str, str], Tensor]


@dataclass(frozen=True)
class PruneSettings:
    """How to prune.

    Attributes:
        target: the share that shall go, between 0 and 1.
        by: of what: gflops, params, channels, or latency (measured).
        importance: a key of `pruning.importance.IMPORTANCES`.
        scope: "global" compares the channels of all layers, "layer" takes the same share of each.
        normalize: how importances of different layers are made comparable: mean, max or none.
        round_to: widths become multiples of this.
        min_keep: share of each layer that stays in any case.
        protect: names of module classes whose own layers keep their outputs, such as "SPPF".
        seed: of random importance.
    """

    target: float = 0.5
    by: str = "gflops"
    importance: str = "bn"
    scope: str = "global"
    normalize: str = "mean"
    round_to: int = 8
    min_keep: float = 0.2
    protect: Sequence[str] = ()
    seed: int = 0


def prune(
    model: nn.Module,
    target: float = 0.5,
    *,
    image: Tensor | None = None,
    batches: Iterable[Any] = (),
    loss: Loss | None = None,
    **settings: Any,
) -> PruneResult:
    """Removes the least important channels of a network, in place, until a share of it is gone.

    A model that keeps a record of its own widths (a method `record_channels`) is asked to write it.

    Args:
        model: of convolutions with BatchNorm that is not folded.
        target: the share to remove.
        image: (N, C, H, W) example, on the model's device; needed for a target of latency, which is measured on it.
        batches, loss: data, and (model, batch) -> scalar, for Taylor importance.
        **settings: the other fields of `PruneSettings`.

    Raises:
        PruneError: a setting or the model does not work, or the target cannot be reached.
    """
    chosen = check_settings(PruneSettings(target=target, **settings))
    check_model(model)
    device = next(model.parameters()).device
    image = torch.zeros(1, 3, TRACE_SIZE, TRACE_SIZE, device=device) if image is None else image
    groups = prunable_groups(model, image[:1], chosen.protect)
    measure = make_importance(model, chosen, batches, loss)
    usable = [group for group in groups if not group.reason]
    scores = group_scores(usable, measure, chosen.normalize)
    steps = possible_steps(usable, scores, scope=chosen.scope, round_to=chosen.round_to, min_keep=chosen.min_keep)
    sizes = SizeModel(model, image[:1], run_for_outputs)
    before = sizes.count({})

    def size_without(gone: dict[tuple[str, str], Tensor]) -> Size:
        return sizes.count({place: len(indices) for place, indices in gone.items()})

    def share_gone(widths: dict[int, int]) -> float:
        gone = removed_channels(usable, scores, widths)
        if chosen.by == "latency":
            return _latency_gone(model, gone, image)
        return 1 - getattr(size_without(gone), chosen.by) / getattr(before, chosen.by)

    widths = widths_after(steps, fewest_steps(steps, share_gone, target, chosen.by))
    share, removed = share_gone(widths), removed_channels(usable, scores, widths)
    full = _convolution_widths(model)
    remove_channels(model, removed)
    record = getattr(model, "record_channels", None)
    if record is not None:
        record()
    return PruneResult(_layers(full, _convolution_widths(model), groups), before, size_without(removed), share, removed)


def run_for_outputs(model: nn.Module, image: Tensor) -> Any:
    """Runs a detector so that all its outputs take part, auxiliary ones too: as in training, but for BatchNorm."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return model(image)


def check_model(model: nn.Module) -> None:
    """Refuses what cannot be pruned.

    Raises:
        PruneError: not a network of PyTorch modules, or one whose BatchNorm has been folded away.
    """
    if isinstance(model, torch.jit.ScriptModule) or not isinstance(model, nn.Module):
        raise PruneError("an exported model cannot be pruned; prune the checkpoint that it was exported from")
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        raise PruneError(
            "this model has no BatchNorm (it was folded into the convolutions for inference); "
            "prune the checkpoint of the training"
        )


def check_settings(settings: PruneSettings) -> PruneSettings:
    """The settings, once they are in range.

    Raises:
        PruneError: names the setting, its value and what was expected.
    """
    for kind, value, known in (
        ("target of", settings.by, TARGETS),
        ("importance", settings.importance, tuple(IMPORTANCES)),
        ("scope", settings.scope, SCOPES),
        ("normalize", settings.normalize, NORMALIZATIONS),
    ):
        if value not in known:
            raise PruneError(f"unknown {kind} {value!r}; known: {', '.join(known)}")
    if not 0 < settings.target < 1:
        raise PruneError(f"target is {settings.target:g}; expected the share to remove, more than 0 and less than 1")
    if not 0 <= settings.min_keep < 1:
        raise PruneError(f"min_keep is {settings.min_keep:g}; expected a share of at least 0 and less than 1")
    if settings.round_to < 1:
        raise PruneError(f"round_to is {settings.round_to}; expected at least 1")
    return settings


def prunable_groups(model: nn.Module, image: Tensor, protect: Sequence[str] = ()) -> list[Group]:
    """The groups of a model, with the layers inside modules of protected classes marked as such.

    Raises:
        PruneError: a protected name is no class in this model.
    """
    names = dict(model.named_modules())
    kinds = {name: _kinds(module) for name, module in names.items()}
    known = sorted({kind for one in kinds.values() for kind in one})
    for wanted in protect:
        if wanted not in known:
            close = difflib.get_close_matches(wanted, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"this model has {', '.join(known)}"
            raise PruneError(f"protect: no layer of this model is a {wanted[:MAX_NAME]!r}; {hint}")
    roots = {name: kind for name, one in kinds.items() for kind in one & set(protect)}
    groups = trace_groups(model, image, run_for_outputs)
    for segment in (segment for group in groups for segment in group.segments):
        if not any(isinstance(module, nn.BatchNorm2d) for module in segment.modules()):
            segment.reason = segment.reason or "no BatchNorm behind it"
        makers = [port.name for port in segment.places if port.side == "out"]
        for root, kind in roots.items():
            if any(maker == root or maker.startswith(f"{root}.") for maker in makers):
                segment.reason = segment.reason or f"{kind} is protected"
    return groups


def _kinds(module: nn.Module) -> set[str]:
    """The names by which a module can be protected: its class, and what its architecture calls it."""
    written = vars(module).get("type")  # `module.type` would be PyTorch's method where the architecture says nothing
    return {type(module).__name__, *([written] if isinstance(written, str) else [])}


def make_importance(
    model: nn.Module, settings: PruneSettings, batches: Iterable[Any] = (), loss: Loss | None = None
) -> Importance:
    """The measure that the settings name."""
    kind = IMPORTANCES[settings.importance]
    if kind.needs_data and loss is None:
        raise PruneError(f"{settings.importance} importance needs data: give batches and a loss, or use another one")
    if kind is Taylor and loss is not None:
        return Taylor(model, batches, loss)
    return Random(model, settings.seed) if kind is Random else kind(model)


def _latency_gone(model: nn.Module, gone: dict[tuple[str, str], Tensor], image: Tensor) -> float:
    """The share of the model's time that a copy without these channels saves, both in their form for inference."""
    full, pruned = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
    remove_channels(pruned, gone)
    for one in (full, pruned):
        fold = getattr(one, "fuse", None)
        if fold is not None:
            fold()
    slow, fast = measure_latency([full, pruned], image)
    return 1 - fast / slow


def _convolution_widths(model: nn.Module) -> dict[str, tuple[int, int]]:
    """(input, output) channels of every convolution."""
    return {n: (m.in_channels, m.out_channels) for n, m in model.named_modules() if isinstance(m, CONVOLUTIONS)}


def _layers(
    before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]], groups: Sequence[Group]
) -> list[LayerWidths]:
    kept_for: dict[str, str] = {}
    for group in groups:
        for segment in group.segments:
            if group.reason:
                kept_for |= {port.name: group.reason for port in segment.places if port.side == "out"}
    return [LayerWidths(name, before[name], after[name], kept_for.get(name, "")) for name in before]
