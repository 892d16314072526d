"""What a file is that is not a checkpoint, as far as its first bytes tell: half of all wrong files are named right."""

from __future__ import annotations

import re
from pathlib import Path

SNIFFED_BYTES = 512
RETRY = "copy or download it again"
# First bytes -> what such a file is, and the remedy.
MAGICS: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself", "run `git lfs pull`"),
    (b"<?xml", "is an error message of a web server, not a checkpoint", "the download went wrong, fetch it again"),
    (b'{"', "is JSON text, not a checkpoint", "if it is a server's error message, fetch the file again"),
    (b"\x89HDF\r\n\x1a\n", "is a Keras (HDF5) file", "give the .pt file that it was made from"),
    (b"\x1f\x8b", "is compressed by gzip", "unpack it and give the .pt file inside"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7-Zip archive", "unpack it and give the .pt file inside"),
    (b"Rar!", "is a RAR archive", "unpack it and give the .pt file inside"),
    (b"\xff\xd8\xff", "is a JPEG picture", "give a .pt file"),
    (b"\x89PNG", "is a PNG picture", "give a .pt file"),
    (b"PK\x05\x06", "is an empty zip archive", RETRY),
)
# Names of formats without first bytes of their own.
SUFFIXES = {
    ".onnx": "an ONNX export",
    ".engine": "a TensorRT export",
    ".tflite": "a TensorFlow Lite export",
    ".pb": "a TensorFlow export",
    ".mlmodel": "a CoreML export",
    ".weights": "a Darknet file",
    ".yaml": "a yaml",
    ".yml": "a yaml",
}
WEB_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|body)", re.IGNORECASE)
# A safetensors file opens with the length of a JSON header; an ONNX file with its version and its producer's name.
SAFETENSORS = re.compile(rb"[\s\S]{6}\0\0\{")
ONNX = re.compile(rb"\x08[\x03-\x20](\x12[\x01-\x40](pytorch|onnx|tf2onnx|ultralytics)|:|B)")


def describe_wrong_file(path: Path, start: bytes) -> str:
    """One line on what a file is instead of a checkpoint, and the remedy.

    Args:
        path: the file.
        start: its first `SNIFFED_BYTES` bytes.
    """
    name = repr(str(path))
    if not start:
        return f"checkpoint {name} is empty; {RETRY}"
    for magic, what, remedy in MAGICS:
        if start.startswith(magic):
            return f"checkpoint {name} {what}; {remedy}"
    if WEB_PAGE.match(start):
        return f"checkpoint {name} is a web page, not a checkpoint; the download went wrong, fetch it again"
    if SAFETENSORS.match(start):
        return (
            f"checkpoint {name} is a safetensors file, which holds weights without an architecture; "
            "give the training's .pt file"
        )
    if ONNX.match(start) or b"ONNX" in start[:64]:
        return f"checkpoint {name} is an ONNX export; give the .pt file that it was made from"
    if start[4:8] == b"TFL3":
        return f"checkpoint {name} is a TensorFlow Lite export; give the .pt file that it was made from"
    if not start.strip(b"\0"):
        return f"checkpoint {name} holds nothing but zeros; {RETRY}"
    if path.suffix.lower() in SUFFIXES:
        return f"{name} is {SUFFIXES[path.suffix.lower()]}, not a PyTorch checkpoint; give a .pt file"
    return f"{name} is not a PyTorch checkpoint (it starts with {start[:12]!r}); give a .pt file"
