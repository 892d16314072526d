"""Two ways to read a network's inner feature maps: ask for layers by index, or hook modules by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from .errors import DistillError, check_choice, shown, unknown_name


class ExtraFeaturesTap:
    """For networks whose forward pass takes `extra_features=[i, j, ...]` and `features_only=True`.

    Attributes:
        layers: the tapped layers.
        requested: what a training loop has to pass as `extra_features`.
    """

    def __init__(self, model: nn.Module, layers: Sequence[int | str], who: str) -> None:
        indices = list(layers)
        sequence = getattr(unwrap(model), "model", None)
        count = len(sequence) if isinstance(sequence, nn.Sequential) else None
        for position, index in enumerate(indices):
            where = f"{who}_kd_layers[{position}]"
            if isinstance(index, bool) or not isinstance(index, int):
                raise DistillError(f"{where} is {shown(index)}; expected a layer's index, a whole number")
            if index < 0 or (count is not None and index >= count - 1):
                last = "" if count is None else f" to {count - 2}"
                raise DistillError(f"{where} is {index}, but the {who}'s layers before its head are 0{last}")
        self.layers = self.requested = indices

    def run(self, model: nn.Module, images: Tensor, with_head: bool = True) -> tuple[Any, list[Tensor]]:
        """Runs the network: its output and the tapped features, in the order of `layers`."""
        if not self.layers:
            return model(images), []
        if with_head:
            return model(images, extra_features=self.layers)
        return model(images, extra_features=self.layers, features_only=True)

    def collect(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The features of a pass that the training loop ran; `features` is what that pass returned."""
        if len(features) != len(self.layers):
            raise DistillError(
                f"{len(features)} student features for the layers {self.layers}; "
                "call the student with extra_features=distiller.layers"
            )
        return list(features)


class HookTap:
    """For any network: forward hooks on modules chosen by name, as `named_modules()` spells them.

    Hooks go on the unwrapped network, so names never start with `module.`. Features of a training pass are kept until
    `collect` takes them; passes in evaluation mode are not kept. Call `close()` to remove the hooks.
    An output that a later in-place operation overwrites cannot be tapped: hook the module after it.

    Attributes: as in `ExtraFeaturesTap`.
    """

    def __init__(self, model: nn.Module, layers: Sequence[int | str], who: str) -> None:
        modules = dict(unwrap(model).named_modules())
        for position, name in enumerate(layers):
            if name not in modules or name == "":
                raise unknown_name("module", name, modules, f"{who}_kd_layers[{position}]")
        self.layers = list(layers)
        self.requested: list[int | str] = []
        self._who = who
        self._found: dict[int, Any] = {}
        self._always = False
        self._handles = [
            modules[str(name)].register_forward_hook(Keep(self._keeper(slot))) for slot, name in enumerate(layers)
        ]

    def _keeper(self, slot: int) -> Callable[[nn.Module, Any], None]:
        def keep(module: nn.Module, output: Any) -> None:
            if module.training or self._always:
                self._found[slot] = output

        return keep

    def run(self, model: nn.Module, images: Tensor, with_head: bool = True) -> tuple[Any, list[Tensor]]:
        """Runs the whole network, with its head in any case: its output and the tapped features."""
        del with_head
        self._always = True
        try:
            output = model(images)
        finally:
            self._always = False
        return output, self.collect(())

    def collect(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The features of a pass that the training loop ran; forgets them, so that no graph outlives its step."""
        del features
        found, self._found = dict(self._found), {}
        missing = [str(name) for slot, name in enumerate(self.layers) if slot not in found]
        if missing:
            raise DistillError(
                f"the {self._who}'s forward pass did not reach {', '.join(missing)}; choose modules that it uses"
            )
        return [found[slot] for slot in range(len(self.layers))]

    def close(self) -> None:
        """Removes the hooks."""
        for handle in self._handles:
            handle.remove()


class Keep:
    """A hook that stays with its network: the copy of a network (an EMA, say) gets one that does nothing."""

    def __init__(self, keep: Callable[[nn.Module, Any], None] | None = None) -> None:
        self._keep = keep

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._keep is not None:
            self._keep(module, output)

    def __deepcopy__(self, memo: dict[int, Any]) -> Keep:
        return Keep()

    def __reduce__(self) -> tuple[type[Keep], tuple[()]]:
        return Keep, ()


def remove_hooks(model: nn.Module) -> None:
    """Takes the hooks of a `HookTap` off a network.

    For the copy of a student that a foreign training loop keeps (an EMA) or pickles whole: without them the file can be
    read where this package is not.
    """
    for module in model.modules():
        for key, hook in list(module._forward_hooks.items()):
            if isinstance(hook, Keep):
                del module._forward_hooks[key]


Tap = ExtraFeaturesTap | HookTap
TAPS: dict[str, type[Tap]] = {"extra_features": ExtraFeaturesTap, "hooks": HookTap}


def make_tap(kind: str, model: nn.Module, layers: Sequence[int | str], who: str) -> Tap:
    """A tap on a network's layers; `who` ("student" or "teacher") is named in errors.

    Raises:
        DistillError: the kind is unknown, or a layer is not there.
    """
    return TAPS[check_choice("taps", kind, TAPS, "Distiller")](model, layers, who)


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside DistributedDataParallel, DataParallel or torch.compile wrappers."""
    while True:
        compiled = getattr(model, "_orig_mod", None)
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(compiled, nn.Module):
            model = compiled
        else:
            return model
