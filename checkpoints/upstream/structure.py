"""What the layers of a pickled model do that neither its weights nor its yaml tell, beside the layers built from them.

The yaml in a file says what its author's code made of it. Where that code had been changed, another activation in every
convolution say, the weights still fit and the outputs would be wrong without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from checkpoints.pickled.rebuild import StandIn, printable
from utils.errors import UserError

Facts = dict[str, Any]
_PAIR = ("kernel_size", "stride", "padding", "dilation")
# PyTorch's layer -> the attributes that its output follows from, beside its weights.
LAYERS: dict[str, tuple[str, ...]] = {
    "Conv2d": (*_PAIR, "groups"),
    "ConvTranspose2d": (*_PAIR, "groups"),
    "BatchNorm2d": ("eps",),
    "MaxPool2d": (*_PAIR, "ceil_mode"),
    "AvgPool2d": ("kernel_size", "stride", "padding", "ceil_mode"),
    "Upsample": ("size", "scale_factor", "mode"),
    "SiLU": (), "ReLU": (), "ReLU6": (), "Hardswish": (), "Mish": (), "Sigmoid": (), "PReLU": (),
    "LeakyReLU": ("negative_slope",),
    "ELU": ("alpha",),
    "GELU": ("approximate",),
}  # fmt: skip
ACTIVATIONS = ("SiLU", "ReLU", "ReLU6", "Hardswish", "Mish", "Sigmoid", "LeakyReLU", "ELU", "GELU", "PReLU")
TOLERANCE = 1e-9
MAX_VALUE = 1 << 31


def pickled_facts(module: StandIn) -> Facts | None:
    """What a stand-in of one of PyTorch's layers does; None for any other module."""
    if not module.class_name.startswith("torch.nn.modules.") or module.short_name not in LAYERS:
        return None
    wanted, held = LAYERS[module.short_name], module.attributes
    return {"layer": module.short_name} | {key: _comparable(held[key]) for key in wanted if key in held}


def _built_facts(module: nn.Module) -> Facts | None:
    name = type(module).__name__
    if name not in LAYERS or not type(module).__module__.startswith("torch.nn"):
        return None
    return {"layer": name} | {key: _comparable(getattr(module, key)) for key in LAYERS[name]}


def _comparable(value: Any) -> Any:
    """A layer's attribute in one form: PyTorch keeps (3, 3) and 3, 2 and 2.0 for the same."""
    if isinstance(value, list | tuple) and 0 < len(value) <= 3 and all(isinstance(v, int | float) for v in value):
        value = value[0] if len(set(value)) == 1 else ", ".join(map(printable, value))
    if isinstance(value, float | None) or (isinstance(value, int) and abs(value) < MAX_VALUE):
        return value
    return printable(value) if isinstance(value, str | int) else type(value).__name__


def default_activation(rows: Any, convolutions: Iterator[Facts | None]) -> str | None:
    """The activation of all `Conv` blocks as a yaml's `activation:` writes it, where it is one and the rows name none.

    Args:
        rows: of the architecture.
        convolutions: facts of each `Conv` block's activation.
    """
    if any("nn." in str(argument) for row in rows for argument in (row[3] if isinstance(row[3], list) else ())):
        return None
    found = {text for facts in convolutions if (text := _as_yaml(facts))}
    return found.pop() if len(found) == 1 else None


def _as_yaml(facts: Facts | None) -> str | None:
    if facts is None or facts["layer"] not in ACTIVATIONS:
        return None
    values = [value for key, value in facts.items() if key != "layer" and isinstance(value, int | float)]
    return f"nn.{facts['layer']}({', '.join(map(str, values))})"


def check_structure(model: nn.Module, structure: Mapping[str, Facts], where: str) -> None:
    """Compares PyTorch's layers in a built model with those in the file, wherever both have one by the same name.

    Raises:
        UserError: one of them computes something else; names it.
    """
    for path, module in model.named_modules():
        pickled, built = structure.get(path), _built_facts(module)
        if pickled is None or built is None:
            continue
        for key, theirs in pickled.items():
            if not _agree(theirs, built.get(key)):
                what = "a" if key == "layer" else f"{pickled['layer']} with {key}"
                raise UserError(
                    f"{where}: {path} is {what} {theirs} in the file, but {built.get(key)} by its architecture; it was "
                    "written by changed code, write that change into a yaml and train from it with --cfg and --weights"
                )


def _agree(first: Any, second: Any) -> bool:
    if isinstance(first, int | float) and isinstance(second, int | float):
        return abs(first - second) <= TOLERANCE
    return first == second
