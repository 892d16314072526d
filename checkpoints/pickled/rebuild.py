"""What the restricted unpickler may build: stand-ins, tensors, plain containers and numpy numbers.

Each function here replaces one that PyTorch or Python names in a pickle. None of them calls the original, and each
checks the sizes that it is given.
"""

from __future__ import annotations

import math
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import numpy as np
import torch

from utils.text import printable as one_line
from utils.text import shown

MAX_DIMENSIONS = 16
MAX_SIZE = 1 << 48
MAX_KEY = 1 << 60
MAX_SHOWN = 100
ITEM_BYTES = 8  # of a value in a container, at the least
MAX_ARGUMENTS = 32  # of a call; a path has the most, one a folder
# Views may repeat their storage (stride 0), as the anchor grids that YOLOv5 leaves in its checkpoints do.
MAX_REPEATED_ELEMENTS = 1 << 22


class BuildError(Exception):
    """A pickle that asks for something no checkpoint contains."""


@dataclass(frozen=True)
class Global:
    """A name that a pickle refers to: text only, never the thing itself."""

    path: str
    is_class: bool = False


@dataclass(eq=False, slots=True)
class StandIn:
    """An object of a known class as it was pickled: the class's name and the attributes, without behaviour."""

    class_name: str
    arguments: tuple[Any, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    state: Any = None  # of a class that pickles itself as something other than its attributes

    @property
    def short_name(self) -> str:
        return self.class_name.rpartition(".")[2]

    def __repr__(self) -> str:
        return f"<{self.class_name}>"


@dataclass(frozen=True, eq=False, repr=False)
class Storage:
    """A tensor's bytes as a file holds them, which only a tensor is made of.

    Attributes:
        values: all of them (numel,).
    """

    values: torch.Tensor


@dataclass(frozen=True)
class PickledDtype:
    """A numpy number type, named in a pickle."""

    dtype: np.dtype


def printable(value: Any) -> str:
    """A scalar from a file as it may be shown on a terminal."""
    return one_line(value[:MAX_SHOWN]) if isinstance(value, str) else shown(value, MAX_SHOWN)


Scalar = (str, bytes, int, float, type(None))


def plain_key(key: Any) -> Any:
    """Refuses keys whose hash could recurse without end, call anything, or equal that of a million others."""
    if not isinstance(key, Scalar):
        raise BuildError(f"a {type(key).__name__} is used as a key")
    if isinstance(key, int) and not -MAX_KEY <= key <= MAX_KEY:  # Python's hash of an integer is its remainder
        raise BuildError("a number is too large to be a key")
    return key


class Account(Protocol):
    def spend(self, amount: int) -> None:
        """Accounts for `amount` bytes of copies."""

    def repeat(self, count: int) -> None:
        """Accounts for `count` values by which views are larger than what they are views of."""


def call(function: str, account: Account, arguments: tuple[Any, ...]) -> Any:
    """What a function of the table gives.

    Raises:
        BuildError: it takes other arguments.
    """
    if len(arguments) > MAX_ARGUMENTS:  # a tuple that is made once could be passed, and copied, a million times
        raise BuildError(f"a call has {len(arguments)} arguments")
    return CALLS[function](account, *arguments)


# -- tensors -----------------------------------------------------------------------------------------------------------


def rebuild_tensor(account: Account, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> torch.Tensor:
    """A view of a storage, whose every element lies inside it."""
    if not isinstance(storage, Storage):
        raise BuildError("a tensor is made of something that is no storage")
    return _view(account, storage.values, offset, size, stride)


def _view(account: Account, values: torch.Tensor, offset: Any, size: Any, stride: Any) -> torch.Tensor:
    if not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise BuildError("a tensor is described wrongly")
    if len(size) != len(stride) or len(size) > MAX_DIMENSIONS or not _are_sizes((offset, *size, *stride)):
        raise BuildError("a tensor has an impossible size, stride or offset")
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    if count and last >= values.numel():
        raise BuildError(f"a tensor of size {size} reaches beyond its storage of {values.numel()} values"[:120])
    if count > values.numel():
        account.repeat(count - values.numel())
    if not count:
        # A size beside the 0 could be too large for the sum of a tensor's places.
        if max(size) > MAX_REPEATED_ELEMENTS:
            raise BuildError(f"an empty tensor has the size {size}"[:120])
        return torch.empty(size, dtype=values.dtype)
    return torch.as_strided(values, size, stride, offset)


def _are_sizes(values: Iterable[Any]) -> bool:
    """Whether all values are integers that a size in memory could be."""
    return all(type(value) is int and 0 <= value <= MAX_SIZE for value in values)


def _rebuild_typed_tensor(
    account: Account, storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> torch.Tensor:
    """A tensor whose storage is plain bytes, and whose number type is an argument."""
    if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype):
        raise BuildError("a tensor is described wrongly")
    held = storage.values
    if held.dtype != torch.uint8 or held.numel() % dtype.itemsize:
        raise BuildError(f"a storage of {held.numel()} bytes does not hold {dtype}")
    return _view(account, held.view(dtype), offset, size, stride)


def _rebuild_parameter(account: Account, tensor: Any, *_: Any) -> torch.Tensor:
    if not isinstance(tensor, torch.Tensor):
        raise BuildError("a parameter is not a tensor")
    return tensor


def _rebuild_from_type(account: Account, function: Any, cls: Any, arguments: Any, *_: Any) -> torch.Tensor:
    """A tensor with attributes of its own, which are left out."""
    if not isinstance(function, Global) or function.path not in _TENSOR_CALLS or not isinstance(arguments, tuple):
        raise BuildError("a tensor is rebuilt by an unknown function")
    return call(function.path, account, arguments)


_TENSOR_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_typed_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
}


# -- plain containers and text -----------------------------------------------------------------------------------------


def _items(account: Account, values: Iterable[Any] = ()) -> list[Any]:
    if not isinstance(values, list | tuple | set | frozenset):
        raise BuildError(f"a container is made of a {type(values).__name__}")
    account.spend(len(values) * ITEM_BYTES)
    return list(values)


def _plain_items(account: Account, values: Iterable[Any] = ()) -> list[Any]:
    return [plain_key(item) for item in _items(account, values)]


def _mapping(account: Account, values: Any = ()) -> OrderedDict[Any, Any]:
    if isinstance(values, dict):
        account.spend(len(values) * ITEM_BYTES)
        return OrderedDict(values)
    pairs = _items(account, values)
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise BuildError("a mapping is made of something other than pairs")
    keys = _plain_items(account, [key for key, _ in pairs])
    return OrderedDict(zip(keys, [value for _, value in pairs]))


def _default_mapping(account: Account, factory: Any = None, values: Any = ()) -> OrderedDict[Any, Any]:
    return _mapping(account, values)


def _encode(account: Account, text: Any, encoding: Any = "latin1") -> bytes:
    """How protocol 2 writes bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise BuildError("bytes are not written as latin-1 text")
    account.spend(len(text))
    return text.encode("latin-1")


def _path(account: Account, *parts: Any) -> str:
    """A pathlib path, as text."""
    if not all(isinstance(part, str) for part in parts):
        raise BuildError("a path is not text")
    account.spend(sum(map(len, parts)))
    head, rest = parts[:1], parts[1:]
    return "".join(head) + ("" if not rest or head[0].endswith("/") else "/") + "/".join(rest)


def _text(account: Account, *parts: Any) -> str:
    """A device, a version, a slice or a range, of which the description is kept."""
    if not all(isinstance(part, str | int | None) for part in parts):
        raise BuildError("a device or version is not text")
    text = ":".join(part[:MAX_SHOWN] if isinstance(part, str) else str(part)[:MAX_SHOWN] for part in parts)
    account.spend(len(text))
    return text


def _size(account: Account, values: Any = ()) -> tuple[Any, ...]:
    return tuple(_items(account, values))


def _complex(account: Account, real: Any = 0.0, imaginary: Any = 0.0) -> complex:
    if not isinstance(real, int | float) or not isinstance(imaginary, int | float):
        raise BuildError("a complex number is made of something else")
    return complex(real, imaginary)


def _method(account: Account, owner: Any, name: Any) -> StandIn:
    """A method kept on an instance, such as the replaced `forward` of a fused layer: its name only."""
    if isinstance(owner, Global) and owner.is_class:
        path = owner.path
    elif isinstance(owner, StandIn):
        path = owner.class_name
    else:
        raise BuildError("it looks up an attribute of something that is not a pickled module")
    if not isinstance(name, str) or len(name) > MAX_SHOWN or not name.isidentifier() or name.startswith("_"):
        raise BuildError("it looks up an attribute that is not a method")
    return StandIn(f"{path}.{name}"[:200])


def _datetime(account: Account, raw: Any = None, *_: Any) -> str:
    """A moment as ISO text, from its ten bytes: year (two), month, day, hour, minute, second, microsecond (three)."""
    if not isinstance(raw, bytes) or len(raw) != 10:
        raise BuildError("a date is described wrongly")
    month, day, hour, minute, second = raw[2:7]
    year, microsecond = int.from_bytes(raw[:2], "big"), int.from_bytes(raw[7:], "big")
    return datetime(year, month, day, hour, minute, second, microsecond).isoformat()


def _path_of(value: Any) -> str | None:
    return value.path if isinstance(value, Global) else None


def _reconstructor(account: Account, cls: Any, base: Any, state: Any) -> StandIn:
    """How protocols 0 and 1 make an object."""
    if not isinstance(cls, Global) or not cls.is_class or _path_of(base) != "builtins.object" or state is not None:
        raise BuildError("it builds an object of an unknown class")
    return StandIn(cls.path)


# -- numpy -------------------------------------------------------------------------------------------------------------


def _numpy_dtype(account: Account, code: Any, *_: Any) -> PickledDtype:
    if not isinstance(code, str) or not re.fullmatch(r"[<|=]?(b1|[iu][1248]|f[248]|c8|c16|[US][1-9]\d{0,3})", code):
        raise BuildError("a numpy array holds something other than numbers and text")
    return PickledDtype(np.dtype(code))


def _numpy_reconstruct(account: Account, cls: Any, *_: Any) -> np.ndarray:
    if _path_of(cls) != "numpy.ndarray":
        raise BuildError("a numpy array of an unknown class")
    return np.empty(0)


def _numpy_scalar(account: Account, dtype: Any, raw: Any) -> Any:
    if not isinstance(dtype, PickledDtype) or not isinstance(raw, bytes) or len(raw) != dtype.dtype.itemsize:
        raise BuildError("a numpy number is described wrongly")
    account.spend(len(raw))
    _check_characters(dtype.dtype, raw)
    return np.frombuffer(raw, dtype.dtype)[0].item()


def _check_characters(dtype: np.dtype, raw: bytes) -> None:
    """Refuses text with numbers that are no characters, of which numpy would make a damaged string."""
    if dtype.kind == "U" and raw and np.frombuffer(raw, "<u4").max() > sys.maxunicode:
        raise BuildError("a numpy text holds what is no character")


def set_numpy_state(account: Account, target: np.ndarray | PickledDtype, state: Any) -> None:
    """Fills an array from its pickled (version, shape, dtype, is_fortran, bytes), or checks a dtype's byte order."""
    if not isinstance(state, tuple):
        raise BuildError("a numpy value is described wrongly")
    if isinstance(target, PickledDtype):
        if len(state) < 5 or state[1] not in ("<", "|", "=") or any(part is not None for part in state[2:5]):
            raise BuildError("a numpy array of structured or big-endian type")
        return
    if len(state) != 5:
        raise BuildError("a numpy array is described wrongly")
    _, shape, dtype, fortran, raw = state
    if not isinstance(dtype, PickledDtype) or not isinstance(raw, bytes) or not isinstance(shape, tuple):
        raise BuildError("a numpy array is described wrongly")
    # A side longer than the data would be one of an array without elements, such as (1 << 40, 0).
    if len(shape) > MAX_DIMENSIONS or not _are_sizes(shape) or max(shape, default=0) > max(len(raw), 1):
        raise BuildError("a numpy array has an impossible shape")
    if math.prod(shape) * dtype.dtype.itemsize != len(raw):
        raise BuildError(f"a numpy array of shape {shape} holds {len(raw)} bytes"[:120])
    account.spend(len(raw))
    _check_characters(dtype.dtype, raw)
    target.__setstate__((1, shape, dtype.dtype, bool(fortran), raw))  # type: ignore[arg-type]


# -- the tables --------------------------------------------------------------------------------------------------------

CALLS: dict[str, Callable[..., Any]] = {
    **_TENSOR_CALLS,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.Size": _size,
    "torch.device": _text,
    "torch.torch_version.TorchVersion": _text,
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,
    "collections.defaultdict": _default_mapping,
    "builtins.dict": _mapping,
    "builtins.list": _items,
    "builtins.tuple": _size,
    "builtins.set": lambda account, *values: set(_plain_items(account, *values)),
    "builtins.frozenset": lambda account, *values: frozenset(_plain_items(account, *values)),
    "builtins.complex": _complex,
    "builtins.slice": _text,
    "builtins.range": _text,
    "datetime.datetime": _datetime,
    "builtins.getattr": _method,
    "builtins.object": _reconstructor,  # named by `_reconstructor` below; never called by a file that PyTorch wrote
    "copyreg._reconstructor": _reconstructor,
    "_codecs.encode": _encode,
    **{
        f"pathlib{module}.{name}": _path
        for module in ("", "._local")
        for name in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
    },
    "numpy.dtype": _numpy_dtype,
    "numpy.ndarray": _numpy_reconstruct,
    "numpy.core.multiarray._reconstruct": _numpy_reconstruct,
    "numpy.core.multiarray.scalar": _numpy_scalar,
}

_STORAGES = {
    "Half": torch.float16, "BFloat16": torch.bfloat16, "Float": torch.float32, "Double": torch.float64,
    "Byte": torch.uint8, "Char": torch.int8, "Short": torch.int16, "Int": torch.int32, "Long": torch.int64,
    "Bool": torch.bool,
}  # fmt: skip
CONSTANTS: dict[str, Any] = {
    **{f"torch{device}.{name}Storage": dtype for name, dtype in _STORAGES.items() for device in ("", ".cuda")},
    **{f"torch.{module}UntypedStorage": torch.uint8 for module in ("", "storage.", "cuda.")},
    **{f"torch.{str(dtype).removeprefix('torch.')}": dtype for dtype in _STORAGES.values()},
}
