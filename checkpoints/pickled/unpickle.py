"""Reads the pickles inside PyTorch checkpoints without executing anything that they ask for.

Upstream YOLO repositories pickle whole `nn.Module` objects. A common unpickler would import their classes and call what
the file names. Here a small machine of our own walks the opcodes instead. It imports nothing; the classes that those
repositories are known to pickle become inert `StandIn` objects with a class name and attributes; a short table of
functions (tensors, plain containers, numpy numbers) is re-implemented with every size checked; any other name makes the
whole file refused, and the error lists the names.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from checkpoints.pickled.archive import Archive, LegacyArchive, PickleStream, damaged, open_archive
from checkpoints.pickled.names import MAX_NAME, canonical, is_stand_in, other_software
from checkpoints.pickled.rebuild import (
    CALLS,
    CONSTANTS,
    ITEM_BYTES,
    MAX_REPEATED_ELEMENTS,
    MAX_SIZE,
    BuildError,
    Global,
    PickledDtype,
    StandIn,
    Storage,
    call,
    plain_key,
    printable,
    set_numpy_state,
)
from utils.errors import UserError

MAX_OPCODES = 1_500_000  # ten times those of the largest published checkpoints
MAX_COPIES = 32 << 20  # bytes; and those of a small file no more than its own size and a little
SMALL_COPIES = 1 << 16


@dataclass
class Unpickled:
    """What a checkpoint file holds.

    Attributes:
        content: the pickled value: plain values, tensors, and `StandIn` objects for pickled classes.
        classes: the class names that became stand-ins.
    """

    content: Any
    classes: set[str] = field(default_factory=set)


def unpickle(path: str | Path) -> Unpickled:
    """Reads a checkpoint file of any PyTorch version without executing anything in it.

    Raises:
        UserError: not a checkpoint, cut short, damaged, or it names something that no YOLO checkpoint contains.
    """
    archive = open_archive(path)
    try:
        if isinstance(archive, LegacyArchive):
            return _read_legacy(archive)
        machine = PickleMachine(archive)
        return machine.finish(machine.run(archive.pickle_stream()))
    finally:
        archive.close()


def _read_legacy(archive: LegacyArchive) -> Unpickled:
    """The older stream after its magic number: protocol, system, content, storage keys, raw storages."""
    stream = archive.pickle_stream()
    machine = PickleMachine(archive)
    protocol, system = machine.run(stream), machine.run(stream)
    plain = type(protocol) is int and isinstance(system, dict)
    if not plain or protocol != 1001 or system.get("little_endian") is not True:
        raise damaged(archive.path, "its header is not one that PyTorch writes")
    unpickled = machine.finish(machine.run(stream))
    keys = machine.run(stream)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise damaged(archive.path, "its list of storages is not one that PyTorch writes")
    archive.read_storages(keys)
    return unpickled


class PickleMachine:
    """Walks the opcodes of protocol 0 to 4 pickles. It holds no reference to any importable code.

    Args:
        archive: where tensor storages come from.
    """

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._classes: set[str] = set()
        self._refused: set[str] = set()
        self._opcodes_left = MAX_OPCODES
        # What copies of memoised values may cost in all. Without it a small pickle could copy one large value for ever.
        self._copies_left = min(archive.size + SMALL_COPIES, MAX_COPIES)
        self._repeats_left = MAX_REPEATED_ELEMENTS
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self, stream: PickleStream) -> Any:
        """Runs one pickle up to its STOP and returns the value; a name that is not known is an inert `Global` in it."""
        self._stack, self._marks, self._memo = [], [], {}
        try:
            for opcode, argument, _ in pickletools.genops(stream):  # type: ignore[arg-type]
                self._opcodes_left -= 1
                if self._opcodes_left < 0:
                    raise BuildError(f"more than {MAX_OPCODES} instructions")
                if opcode.name == "STOP":
                    break
                if opcode.name in _PUSH:
                    self._stack.append(argument)
                elif opcode.name in _OPERATIONS:
                    _OPERATIONS[opcode.name](self, argument)
                else:
                    raise BuildError(f"the pickle instruction {opcode.name} is not one that PyTorch writes")
            return self._stack.pop()
        except BuildError as error:
            raise damaged(self._archive.path, str(error)) from error
        except (UserError, MemoryError):
            raise
        except Exception as error:
            # A malformed pickle: an empty stack, an unknown memo entry, a value of the wrong type, numbers that PyTorch
            # or numpy refuse. Whatever it is, the file asked for it, as nothing but its own instructions ran.
            reason = f"{type(error).__name__}: {printable(str(error))}"
            raise damaged(self._archive.path, f"its pickle does not parse ({reason})") from error

    def finish(self, content: Any) -> Unpickled:
        """The value that was read, unless a name was met that is not known."""
        if self._refused:
            names = sorted(self._refused)
            if owner := other_software(names):
                raise UserError(
                    f"checkpoint {str(self._archive.path)!r} holds a {owner} model (it names {names[0]}); only YOLOv5, "
                    "YOLOv7 and YOLOv8 detectors are supported; nothing of it was run"
                )
            more = f" and {len(names) - 6} more" if len(names) > 6 else ""
            raise UserError(
                f"checkpoint {str(self._archive.path)!r} is refused: it names {', '.join(names[:6])}{more}, which no "
                "supported YOLO checkpoint contains; nothing of it was run"
            )
        return Unpickled(content, self._classes)

    # -- helpers of the operations -------------------------------------------------------------------------------------

    def spend(self, amount: int) -> None:
        """Accounts for `amount` bytes of copies."""
        self._copies_left -= amount
        if self._copies_left < 0:
            raise BuildError("it copies values again and again")

    def repeat(self, count: int) -> None:
        """Accounts for `count` values by which views are larger than what they are views of."""
        self._repeats_left -= count
        if self._repeats_left < 0:
            raise BuildError("its tensors repeat themselves beyond the size of the file")

    def _pop_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _find(self, module: Any, name: Any) -> None:
        """Pushes what a global name stands for here."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise BuildError("a global name is not text")
        if len(module) + len(name) > MAX_NAME:
            raise BuildError(f"a global name has {len(module) + len(name)} characters")
        module, name = canonical(module, name)
        path = f"{module}.{name}"
        if path in CONSTANTS:
            self._stack.append(CONSTANTS[path])
            return
        known = path not in CALLS and is_stand_in(module, name)
        if known:
            self._classes.add(path)
        elif path not in CALLS:
            self._refused.add(printable(path))
        self._stack.append(Global(path, is_class=known))

    def _call(self, function: Any, arguments: Any) -> Any:
        """What REDUCE gives: a function of the table, or a stand-in of a known class, or a refused name unchanged."""
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise BuildError("it calls something that is not a named function")
        if function.is_class:
            return StandIn(function.path, arguments)
        if function.path in CALLS:
            return call(function.path, self, arguments)
        return function  # refused: it is reported when the pickle has been read to its end

    # -- operations ----------------------------------------------------------------------------------------------------

    def _mark(self, _: Any) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _pop(self, _: Any) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_mark()

    def _put(self, index: Any) -> None:
        self._memo[len(self._memo) if index is None else index] = self._stack[-1]

    def _get(self, index: Any) -> None:
        self._stack.append(self._memo[index])

    def _global(self, names: Any) -> None:
        self._find(*names.split(" ", 1))

    def _stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._find(module, name)

    def _new_object(self, _: Any) -> None:
        arguments, cls = self._stack.pop(), self._stack.pop()
        self._stack.append(self._call(cls, arguments))

    def _new_object_ex(self, _: Any) -> None:
        keywords, arguments, cls = self._stack.pop(), self._stack.pop(), self._stack.pop()
        if keywords:
            raise BuildError("it builds an object with keyword arguments")
        self._stack.append(self._call(cls, arguments))

    def _reduce(self, _: Any) -> None:
        arguments = self._stack.pop()
        self._stack[-1] = self._call(self._stack[-1], arguments)

    def _build(self, _: Any) -> None:
        """Gives an object its state. No `__setstate__` of the file's choice exists here."""
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, StandIn):
            parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)  # (attributes, slots)
            for part in parts:
                if isinstance(part, dict):
                    self.spend(len(part) * ITEM_BYTES)
                if isinstance(part, dict) and all(isinstance(key, str) for key in part):
                    target.attributes.update(part)
                elif part is not None:
                    target.state = part
        elif isinstance(target, np.ndarray | PickledDtype):
            set_numpy_state(self, target, state)
        elif not isinstance(target, Global | dict | torch.Tensor):  # those carry only bookkeeping such as `_metadata`
            raise BuildError(f"it sets the state of a {type(target).__name__}")

    def _persistent_id(self, _: Any) -> None:
        identity = self._stack.pop()
        if isinstance(identity, tuple) and len(identity) == 4 and identity[0] == "module":
            # The older container wraps a module's class together with its source code, which is left alone.
            if not isinstance(identity[1], Global):
                raise BuildError("a module is described wrongly")
            self._stack.append(identity[1])
            return
        if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
            raise BuildError("it refers to something outside that is not a tensor storage")
        _, kind, key, _, numel = identity[:5]
        if len(identity) == 6 and identity[5] is not None:
            raise BuildError("it holds a view of a storage, a form that PyTorch gave up long ago")
        plain = isinstance(kind, torch.dtype) and isinstance(key, str) and type(numel) is int
        if not plain or not 0 <= numel <= MAX_SIZE:
            raise BuildError("a tensor storage is described wrongly")
        self._stack.append(Storage(self._archive.storage(key, kind, numel)))

    def _append(self, _: Any) -> None:
        item = self._stack.pop()
        self._extend([item])

    def _appends(self, _: Any) -> None:
        items = self._pop_mark()
        self._extend(items)

    def _extend(self, items: list[Any]) -> None:
        if not isinstance(self._stack[-1], list):
            raise BuildError(f"it appends to a {type(self._stack[-1]).__name__}")
        self._stack[-1].extend(items)

    def _set_item(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._update([key, value])

    def _set_items(self, _: Any) -> None:
        self._update(self._pop_mark())

    def _update(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict):
            raise BuildError(f"it sets items of a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2]):
            target[plain_key(key)] = value

    def _add_items(self, _: Any) -> None:
        items = self._pop_mark()
        if not isinstance(self._stack[-1], set):
            raise BuildError(f"it adds items to a {type(self._stack[-1]).__name__}")
        self._stack[-1].update(map(plain_key, items))

    def _frozen_set(self, _: Any) -> None:
        items = self._pop_mark()
        self._stack.append(frozenset(map(plain_key, items)))

    def _list(self, _: Any) -> None:
        items = self._pop_mark()
        self._stack.append(items)

    def _dict(self, _: Any) -> None:
        items = self._pop_mark()
        self._stack.append({})
        self._update(items)

    def _tuple(self, _: Any) -> None:
        items = self._pop_mark()
        self._stack.append(tuple(items))

    def _tuple_of(self, count: int) -> None:
        items = [self._stack.pop() for _ in range(count)]
        self._stack.append(tuple(reversed(items)))


def _ignore(machine: PickleMachine, argument: Any) -> None:
    """PROTO and FRAME carry nothing that matters here."""


# Opcodes whose argument is the value itself.
_PUSH = frozenset(
    [
        "INT",
        "LONG",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG1",
        "LONG4",
        "FLOAT",
        "BINFLOAT",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "UNICODE",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE8",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
    ]
)
_OPERATIONS: dict[str, Callable[[PickleMachine, Any], None]] = {
    "PROTO": _ignore,
    "FRAME": _ignore,
    "NONE": lambda machine, _: machine._stack.append(None),
    "NEWTRUE": lambda machine, _: machine._stack.append(True),
    "NEWFALSE": lambda machine, _: machine._stack.append(False),
    "EMPTY_LIST": lambda machine, _: machine._stack.append([]),
    "EMPTY_DICT": lambda machine, _: machine._stack.append({}),
    "EMPTY_SET": lambda machine, _: machine._stack.append(set()),
    "EMPTY_TUPLE": lambda machine, _: machine._stack.append(()),
    "TUPLE1": lambda machine, _: machine._tuple_of(1),
    "TUPLE2": lambda machine, _: machine._tuple_of(2),
    "TUPLE3": lambda machine, _: machine._tuple_of(3),
    "DUP": lambda machine, _: machine._stack.append(machine._stack[-1]),
    "MARK": PickleMachine._mark,
    "POP": PickleMachine._pop,
    "POP_MARK": lambda machine, _: machine._pop_mark().clear(),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), PickleMachine._put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), PickleMachine._get),
    "GLOBAL": PickleMachine._global,
    "STACK_GLOBAL": PickleMachine._stack_global,
    "NEWOBJ": PickleMachine._new_object,
    "NEWOBJ_EX": PickleMachine._new_object_ex,
    "REDUCE": PickleMachine._reduce,
    "BUILD": PickleMachine._build,
    "BINPERSID": PickleMachine._persistent_id,
    "APPEND": PickleMachine._append,
    "APPENDS": PickleMachine._appends,
    "SETITEM": PickleMachine._set_item,
    "SETITEMS": PickleMachine._set_items,
    "ADDITEMS": PickleMachine._add_items,
    "FROZENSET": PickleMachine._frozen_set,
    "LIST": PickleMachine._list,
    "DICT": PickleMachine._dict,
    "TUPLE": PickleMachine._tuple,
}
