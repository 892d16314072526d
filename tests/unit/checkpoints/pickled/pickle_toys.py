"""Pickles by hand, instruction by instruction, and the two containers around them."""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path

from checkpoints.pickled.archive import LEGACY_MAGIC


def write_zip(
    path: Path, data: bytes, storages: dict[str, bytes] | None = None, compression: int = 0, **extra: bytes
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as z:
        z.writestr("archive/data.pkl", data)
        for key, raw in (storages or {}).items():
            z.writestr(f"archive/data/{key}", raw)
        for name, raw in extra.items():
            z.writestr(f"archive/{name}", raw)
    return path


def g(module: str, name: str) -> bytes:
    """The GLOBAL instruction."""
    return f"c{module}\n{name}\n".encode()


def u(text: str) -> bytes:
    """The BINUNICODE instruction."""
    raw = text.encode()
    return b"X" + struct.pack("<L", len(raw)) + raw


def integer(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def storage(key: str = "0", kind: str = "FloatStorage", numel: int = 4) -> bytes:
    return b"(" + u("storage") + g("torch", kind) + u(key) + u("cpu") + integer(numel) + b"tQ"


def tensor(size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, numel: int = 4) -> bytes:
    shape = b"(" + b"".join(map(integer, size)) + b"t(" + b"".join(map(integer, stride)) + b"t"
    return (
        g("torch._utils", "_rebuild_tensor_v2")
        + b"("
        + storage(numel=numel)
        + integer(offset)
        + shape
        + b"\x89"
        + b"NtR"
    )


def write_legacy(path: Path, data: bytes) -> Path:
    """The older container around one pickle and a storage of 16 bytes."""
    head = LEGACY_MAGIC + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    path.write_bytes(head + data + pickle.dumps(["0"], 2) + struct.pack("<q", 4) + bytes(16))
    return path
