"""The containers that `torch.save` writes: a zip archive of raw tensor storages, or the older single stream.

A file is untrusted input. Every size that it declares is compared with the bytes that are really there before memory is
set aside, nothing is ever unpacked to disk, and nothing in here runs code from the file.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import BinaryIO, Protocol

import torch

from checkpoints.pickled.filetype import SNIFFED_BYTES, describe_wrong_file
from checkpoints.pickled.zip_directory import CutShort, ZipEntry, ZipError, read_directory, read_stored
from utils.errors import UserError
from utils.paths import existing_file
from utils.text import shown

MAX_PICKLE_BYTES = 64 << 20  # structure only; weights are separate entries
LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # a pickle of the number that opens the older stream
LONGEST_ORDER = 80
ZIP_MAGIC = b"PK\x03\x04"


class PickleStream(Protocol):
    """What the reader of a pickle needs of a file."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes."""

    def readline(self) -> bytes:
        """The bytes up to the next newline."""

    def tell(self) -> int:
        """The position."""


class BoundedStream:
    """A file that gives at most `limit` bytes in all, and sets no memory aside for bytes that it does not have.

    Args:
        stream: the file, at its position.
        limit: bytes.
    """

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self._stream = stream
        self._left = limit

    def read(self, size: int, /) -> bytes:
        return self._counted(self._stream.read(min(size, self._left)))

    def readline(self) -> bytes:
        return self._counted(self._stream.readline(self._left))

    def tell(self) -> int:
        return self._stream.tell()

    def _counted(self, content: bytes) -> bytes:
        self._left -= len(content)
        return content


class Archive(Protocol):
    """Where a pickle's bytes and the tensor storages that it refers to come from."""

    path: Path
    size: int  # bytes of the file

    def pickle_stream(self) -> PickleStream:
        """The stream of the main pickle."""

    def storage(self, key: str, dtype: torch.dtype, numel: int) -> torch.Tensor:
        """The storage `key` as a flat tensor (numel,)."""

    def close(self) -> None:
        """Closes the file."""


def damaged(path: Path, what: str) -> UserError:
    """The error for a file whose contents contradict themselves."""
    return UserError(f"checkpoint {str(path)!r} is damaged or malicious: {what}; nothing of it was run, fetch it again")


class ZipArchive:
    """The zip form (PyTorch 1.6 and later): `<root>/data.pkl`, and an uncompressed `<root>/data/<key>` a storage."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.path = path
        self.size = path.stat().st_size
        self._stream = stream
        self._entries = self._checked_entries()
        self._storages: dict[str, torch.Tensor] = {}
        order = self._entries.get("byteorder")
        if order and (order.size > LONGEST_ORDER or self._read("byteorder").strip() != b"little"):
            raise UserError(
                f"checkpoint {str(path)!r} was written on a big-endian machine; save it again on a common one"
            )

    def _checked_entries(self) -> dict[str, ZipEntry]:
        """The entries by their name below the root folder, once all of them are seen to be plain and in bounds."""
        try:
            found = read_directory(self._stream, self.size)
        except CutShort as error:
            raise UserError(
                f"checkpoint {str(self.path)!r} is cut short ({error}); copy or download it again"
            ) from error
        except ZipError as error:
            raise damaged(self.path, str(error)) from error
        root = found[0].name.partition("/")[0] if found else ""
        names = {entry.name for entry in found}
        if f"{root}/constants.pkl" in names or any(name.startswith(f"{root}/code/") for name in names):
            raise UserError(
                f"{str(self.path)!r} is a TorchScript export, not a checkpoint; give the .pt file that it was made from"
            )
        if f"{root}/data.pkl" not in names:
            inside = sorted(name for name in names if name.endswith((".pt", ".pth")))
            remedy = f"unpack it and give {shown(inside[0])} inside" if inside else "give a .pt file"
            raise UserError(
                f"{str(self.path)!r} is a zip file but not a PyTorch checkpoint (it has no data.pkl); {remedy}"
            )
        entries: dict[str, ZipEntry] = {}
        for entry in found:
            self._check_entry(entry, root)
            name = entry.name.partition("/")[2]
            if name in entries:
                raise damaged(self.path, f"two entries are named {shown(entry.name)}")
            entries[name] = entry
        if entries["data.pkl"].size > MAX_PICKLE_BYTES:
            raise damaged(
                self.path, f"its data.pkl of {entries['data.pkl'].size} bytes is larger than any checkpoint's"
            )
        return entries

    def _check_entry(self, entry: ZipEntry, root: str) -> None:
        """Refuses an entry whose name leads elsewhere, or that is not stored as it is."""
        first, _, name = entry.name.partition("/")
        if first != root or ".." in name.split("/") or "\\" in name or not root:
            raise damaged(self.path, f"the entry name {shown(entry.name)} is not one that PyTorch writes")
        if entry.encrypted:
            raise damaged(self.path, f"the entry {shown(entry.name)} is encrypted, which PyTorch never does")
        if not entry.stored:
            raise damaged(self.path, f"the entry {shown(entry.name)} is compressed, which PyTorch never does")

    def _read(self, name: str) -> bytearray:
        try:
            return read_stored(self._stream, self._entries[name])
        except (ZipError, OSError) as error:
            raise damaged(self.path, f"the entry {shown(name)} cannot be read ({error})") from error

    def pickle_stream(self) -> PickleStream:
        return io.BytesIO(self._read("data.pkl"))

    def storage(self, key: str, dtype: torch.dtype, numel: int) -> torch.Tensor:
        name = f"data/{key}"
        if name not in self._entries:
            raise damaged(self.path, f"the storage {shown(key)} is not in the file")
        held = self._entries[name].size
        if numel * dtype.itemsize != held:
            raise damaged(
                self.path, f"the storage {shown(key)} declares {numel} values of {dtype}, the file holds {held} bytes"
            )
        if key not in self._storages:
            self._storages[key] = _flat_tensor(self._read(name), dtype)
        if self._storages[key].dtype != dtype:
            raise damaged(self.path, f"the storage {shown(key)} is declared with two types")
        return self._storages[key]

    def close(self) -> None:
        self._stream.close()


class LegacyArchive:
    """The single stream of PyTorch before 1.6: pickles one after another, then the raw storages.

    The storages follow the pickle that refers to them, so they are set aside when named and filled by `read_storages`.
    """

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.path = path
        self.size = path.stat().st_size
        self._stream = stream
        self._storages: dict[str, tuple[bytearray, torch.Tensor]] = {}
        self._claimed = 0
        stream.seek(len(LEGACY_MAGIC))
        self._pickles = BoundedStream(stream, min(self.size, MAX_PICKLE_BYTES))

    def pickle_stream(self) -> PickleStream:
        return self._pickles

    def storage(self, key: str, dtype: torch.dtype, numel: int) -> torch.Tensor:
        if key not in self._storages:
            self._claimed += numel * dtype.itemsize
            if self._claimed > self.size:
                raise damaged(self.path, f"its storages claim more than the {self.size} bytes of the file")
            content = bytearray(numel * dtype.itemsize)
            self._storages[key] = content, _flat_tensor(content, dtype)
        tensor = self._storages[key][1]
        if tensor.dtype != dtype or tensor.numel() != numel:
            raise damaged(self.path, f"the storage {shown(key)} is declared twice, and differently")
        return tensor

    def read_storages(self, keys: list[str]) -> None:
        """Fills the storages from the raw data that follows the last pickle, in the order of `keys`."""
        missing = set(self._storages) - set(keys)
        if missing:
            raise damaged(self.path, f"the storage {shown(min(missing))} is not in the file")
        for key in keys:
            if key not in self._storages:
                raise damaged(self.path, f"the storage {shown(key)} belongs to no tensor")
            content, tensor = self._storages[key]
            header = self._stream.read(8)
            if len(header) != 8 or struct.unpack("<q", header)[0] != tensor.numel():
                raise damaged(self.path, f"the storage {shown(key)} has another length than declared")
            if self._stream.readinto(content) != len(content):  # type: ignore[attr-defined]
                raise UserError(f"checkpoint {str(self.path)!r} is cut short; copy or download it again")

    def close(self) -> None:
        self._stream.close()


def _flat_tensor(content: bytearray, dtype: torch.dtype) -> torch.Tensor:
    return torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)


def open_archive(path: str | Path) -> ZipArchive | LegacyArchive:
    """Opens a checkpoint file.

    Raises:
        UserError: the file is missing, is not a checkpoint, is cut short, or contradicts itself.
    """
    path = existing_file(path, "checkpoint")
    try:
        stream = open(path, "rb")  # noqa: SIM115 - the archive owns and closes it
    except OSError as error:
        raise UserError(f"checkpoint {str(path)!r} cannot be read: {error.strerror}") from error
    try:
        start = stream.read(SNIFFED_BYTES)
        if start.startswith(ZIP_MAGIC):
            return ZipArchive(path, stream)
        if start.startswith(LEGACY_MAGIC):
            return LegacyArchive(path, stream)
        raise UserError(describe_wrong_file(path, start))
    except BaseException:
        stream.close()
        raise
