"""Writes .pt files: tensors and plain values, as a whole or not at all."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

from checkpoints.upstream.read import MAX_DEPTH
from utils.errors import UserError
from utils.paths import replacing
from utils.running.processes import Terminated, causes
from utils.text import shown

FORMAT = "yolo-distill"
FORMAT_VERSION = 1


def save_checkpoint(path: str | Path, payload: Mapping[str, Any]) -> None:
    """Writes an own checkpoint so that the file is always either the old one or the complete new one.

    The format and its version are added to the payload. Tensors are stored on the CPU and without the rest of a storage
    that they are a view of.

    Args:
        path: the file; its folder must exist.
        payload: see docs/checkpoints.md; tensors and plain values only.

    Raises:
        UserError: a value is neither a tensor nor plain (its key is named), or the file cannot be written.
    """
    write_archive(Path(path), _storable({"format": FORMAT, "format_version": FORMAT_VERSION, **payload}, "", ()))


def write_archive(path: Path, content: Any, pickle_module: Any = pickle) -> None:
    """Writes a value as PyTorch's container, so that the file is always either the old one or the complete new one.

    Args:
        path: the file; its folder must exist.
        content: anything that the pickler of `pickle_module` can write.
        pickle_module: as in `torch.save`.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        with replacing(path, "wb") as stream:
            with _Sink(stream) as sink:
                torch.save(content, sink, pickle_module=pickle_module)  # type: ignore[arg-type]
            stream.flush()
            os.fsync(stream.fileno())  # or a power cut could leave neither the old file nor the new one
    except (OSError, RuntimeError) as error:  # PyTorch makes a RuntimeError of a full disk's OSError
        _raise_interruption(error)
        cause = error if isinstance(error, OSError) else error.__context__
        reason = getattr(cause, "strerror", None) or str(error).splitlines()[0]
        raise UserError(
            f"checkpoint {str(path)!r} cannot be written: {reason}; free disk space or choose another --project "
            "(an earlier file of that name is unchanged)"
        ) from error


class _Sink:
    """A stream for PyTorch's writer, which takes everything and keeps nothing once the writing has failed.

    After an error the writer still tries to complete its file when it is destroyed; an error of that ends the process.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.failed = False

    def __enter__(self) -> _Sink:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.failed = True

    def write(self, content: bytes) -> int:
        """Writes, or does as if; returns the number of bytes."""
        if self.failed:
            return len(content)
        try:
            return self.stream.write(content)
        except BaseException:
            self.failed = True
            raise

    def flush(self) -> None:
        """Flushes the stream."""
        if not self.failed:
            self.stream.flush()


def _raise_interruption(error: BaseException) -> None:
    """Raises what came in between, a signal or the end of a loader process, which is no fault of the file's."""
    for each in causes(error):
        if isinstance(each, KeyboardInterrupt | Terminated) or "DataLoader worker" in str(each):
            raise each


def _storable(value: Any, key: str, parents: tuple[int, ...]) -> Any:
    """`value` as it is written: tensors on the CPU, everything else plain."""
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu()
        return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size() else tensor
    if id(value) in parents or len(parents) > MAX_DEPTH:
        raise UserError(f"checkpoint entry {shown(key)} contains itself, or is nested too deeply; store plain values")
    parents = (*parents, id(value))
    if type(value) in (dict, OrderedDict):
        for name in value:
            if type(name) not in (str, int, float, bool):
                raise UserError(
                    f"checkpoint entry {shown(key)} has the key {shown(name)} of type {type(name).__name__}; use text"
                )
        return {name: _storable(item, f"{key}.{name}" if key else str(name), parents) for name, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_storable(item, f"{key}[{i}]", parents) for i, item in enumerate(value))
    kind = f"{type(value).__module__}.{type(value).__name__}"
    raise UserError(f"checkpoint entry {shown(key)} is a {kind}; only tensors and plain values are stored")
