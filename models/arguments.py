"""Values of the argument strings in an architecture yaml, without running any of them as code."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from utils.errors import UserError, unknown_name
from utils.text import shown

ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {
    "nn.SiLU": nn.SiLU,
    "nn.LeakyReLU": nn.LeakyReLU,
    "nn.ReLU": nn.ReLU,
    "nn.ReLU6": nn.ReLU6,
    "nn.Hardswish": nn.Hardswish,
    "nn.Mish": nn.Mish,
    "nn.GELU": nn.GELU,
    "nn.ELU": nn.ELU,
    "nn.PReLU": nn.PReLU,
    "nn.Sigmoid": nn.Sigmoid,
    "nn.Identity": nn.Identity,
}
PLAIN_STRINGS = ("nearest", "linear", "bilinear", "bicubic", "area")
LONGEST_ARGUMENT = 200  # characters
OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.truediv,
}


def resolve_argument(argument: Any, names: Mapping[str, Any], where: str) -> Any:
    """The value of one argument of a yaml row.

    Args:
        argument: anything a yaml holds; only strings need resolving.
        names: values of `nc`, `na`, `anchors` and the like.
        where: yaml and layer, for an error.

    Raises:
        UserError: a string that is no known name, plain string, activation or arithmetic of these.
    """
    if isinstance(argument, list):
        return [resolve_argument(item, names, where) for item in argument]
    if not isinstance(argument, str) or argument in PLAIN_STRINGS:
        return argument
    if len(argument) > LONGEST_ARGUMENT:
        raise UserError(f"{where}: argument {shown(argument, 40)} is not understood; it is longer than any would be")
    try:
        tree = ast.parse(argument, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise UserError(f"{where}: argument {shown(argument)} is not understood") from error
    return _value(tree, names, f"{where}: argument {shown(argument)}")


def make_default_activation(text: str, where: str) -> nn.Module:
    """The activation that the yaml's `activation:` line asks for."""
    activation = resolve_argument(text, {}, where)
    if not isinstance(activation, nn.Module):
        raise UserError(f"{where}: activation {shown(text)} is no activation; write one such as nn.LeakyReLU(0.1)")
    return activation


def _value(node: ast.expr, names: Mapping[str, Any], where: str) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        if node.id not in names:
            raise unknown_name("name", node.id, [*names, *PLAIN_STRINGS, "None", "True", "False"], where)
        return names[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item, names, where) for item in node.elts]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_number(node.operand, names, where)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        left, right = _number(node.left, names, where), _number(node.right, names, where)
        try:
            return OPERATORS[type(node.op)](left, right)
        except (ZeroDivisionError, OverflowError) as error:
            raise UserError(f"{where}: {error}") from error
    if isinstance(node, ast.Call):
        return _activation(node, names, where)
    raise UserError(f"{where} is not understood; use numbers, names and activations such as nn.LeakyReLU(0.1)")


def _number(node: ast.expr, names: Mapping[str, Any], where: str) -> int | float:
    value = _value(node, names, where)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{where} is not understood; only numbers can be added, subtracted, multiplied and divided")
    return value


def _activation(node: ast.Call, names: Mapping[str, Any], where: str) -> nn.Module:
    name = ast.unparse(node.func)
    full_name = name.replace("torch.nn.", "nn.")
    if full_name not in ACTIVATIONS:
        raise unknown_name("activation", name, ACTIVATIONS, where)
    if any(item.arg is None for item in node.keywords):
        raise UserError(f"{where} is not understood; write each keyword out")
    positional = [_value(item, names, where) for item in node.args]
    keywords = {item.arg: _value(item.value, names, where) for item in node.keywords if item.arg}
    try:
        return ACTIVATIONS[full_name](*positional, **keywords)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{where}: {str(error).splitlines()[0]}") from error
