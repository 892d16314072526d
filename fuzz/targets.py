"""What each reader must do with any bytes: return, or raise the error that it documents. Everything else is a finding.

A target also looks at what a reader returns, where wrong contents can be told from right ones, and at how an error
reads: one line, of text that a terminal shows, not too long.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch

from checkpoints.checkpoint import Checkpoint, fitted_model, interpret, load_checkpoint, save_checkpoint, to_payload
from checkpoints.inspect import describe, describe_unknown
from checkpoints.pickled.unpickle import unpickle
from data.config import SPLITS, load_dataset_config
from data.convert import convert, parse_args
from data.label_rows import LABEL_FAULTS, MORE, parse_labels
from data.labels import build_index
from data.records import DatasetIndex
from engine.comparing.experiment import check_files, load_experiment
from engine.config.hyp import read_hyp
from models.yolo import Model
from utils.errors import UserError
from utils.yaml_io import load_yaml

Target = Callable[[bytes], None]

LONGEST_MESSAGE = 1000  # characters of an error, which a user is to read
LARGEST_MODEL = 200_000  # parameters of a model that is built in earnest
CONVERTED_SHARE = 4  # one in so many checkpoints that are read is converted too, as that is slow
FOLDER_MARK = "@FOLDER@"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
STAMP = 1_700_000_000 * 10**9  # modification time of the images, in ns


class WrongResult(Exception):
    """A reader returned what it must not, or raised an error that nobody can read."""


@contextlib.contextmanager
def documented_errors(*files: Path) -> Iterator[None]:
    """Lets a `UserError` pass that is one readable line, and names one of the files where there are such."""
    try:
        yield
    except UserError as error:
        text = str(error)
        if not text.isprintable() or not text:
            raise WrongResult(f"an error of several lines or with control characters: {text[:200]!r}") from error
        if len(text) > LONGEST_MESSAGE:
            raise WrongResult(f"an error of {len(text)} characters: {text[:200]!r}") from error
        if files and not any(path.name in text for path in files):
            raise WrongResult(f"an error that does not say which file: {text[:200]!r}") from error


def require(condition: bool, what: str) -> None:
    """Raises WrongResult unless the condition holds."""
    if not condition:
        raise WrongResult(what)


class CheckpointTarget:
    """Reads a file as every command does that takes a .pt file, and shows it as `inspect` does.

    What is read must fill its model or be refused; and once converted, it must be read again with equal weights.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._converted = folder / "input.pt", folder / "converted.pt"

    def __call__(self, data: bytes) -> None:
        self._path.write_bytes(data)
        with documented_errors(self._path):
            unpickled = unpickle(self._path)
            lines = list(describe_unknown(self._path, unpickled))
            with contextlib.suppress(UserError):
                lines += describe(interpret(self._path, unpickled, allow_nan=True))
            for line in lines:
                require(line.replace("\n", "").isprintable(), f"control characters are shown: {line[:200]!r}")
            with documented_errors(self._path):
                interpret(self._path, unpickled, architecture=False)
            checkpoint = interpret(self._path, unpickled)
            checkpoint.yaml = fitted_model(checkpoint).yaml
            if zlib.crc32(data) % CONVERTED_SHARE == 0:
                self._convert(checkpoint)

    def _convert(self, checkpoint: Checkpoint) -> None:
        save_checkpoint(self._converted, to_payload(checkpoint))
        try:
            again = load_checkpoint(self._converted)
            fitted_model(again)
        except UserError as error:
            raise WrongResult(f"its conversion cannot be read: {error}") from error
        for key, tensor in checkpoint.state_dict.items():
            require(torch.equal(tensor, again.state_dict[key]), f"{key!r} is another after the conversion")


class YamlTarget:
    """Reads a yaml by the reader of its kind, which the first line names: hyp, data, experiment, model or file."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "input.yaml"

    def __call__(self, data: bytes) -> None:
        kind, _, body = data.partition(b"\n")
        self._path.write_bytes(body)
        readers: dict[bytes, Callable[[], object]] = {
            b"# hyp": lambda: read_hyp(self._path).to_dict(),
            b"# data": self._read_data,
            b"# experiment": lambda: check_files(load_experiment(self._path)),
            b"# model": self._build_model,
        }
        with documented_errors():
            readers.get(kind.strip(), lambda: load_yaml(self._path))()

    def _read_data(self) -> None:
        config = load_dataset_config(self._path)
        require(config.nc == len(config.names) > 0, "the classes are not as many as their names")
        require(all(isinstance(name, str) for name in config.names), "a class name is no text")
        for split in SPLITS:
            with documented_errors():
                config.split(split)

    def _build_model(self) -> None:
        """Builds without memory first, and in earnest what is small."""
        with torch.device("meta"):
            model = Model(self._path)
        if sum(parameter.numel() for parameter in model.parameters()) < LARGEST_MODEL:
            Model(self._path).eval()


class LabelsTarget:
    """Reads a label file: every line is a row or an issue, and every row is one to train on."""

    def __init__(self, folder: Path) -> None:
        pass

    def __call__(self, data: bytes) -> None:
        parsed = parse_labels(data)
        check_labels(parsed.labels, parsed.segments)
        require(len(parsed.lines) == len(parsed.labels), "rows and their line numbers are not as many")
        kinds = {kind for _, kind, _ in parsed.issues}
        if not kinds & {*LABEL_FAULTS, MORE} and data[:2] not in UTF16_MARKS:
            text = io.StringIO(data.decode("utf-8-sig", "replace"), newline=None)
            rows = {line for line, row in enumerate(text, 1) if row.split()}
            told = {line for line, _, _ in parsed.issues} | set(parsed.lines.tolist())
            require(told == rows, "a line vanished, or one was made up")
        for _, kind, detail in parsed.issues:
            require(f"{kind} {detail}".isprintable(), f"an issue with control characters: {detail[:200]!r}")
            require(len(detail) <= LONGEST_MESSAGE, f"an issue of {len(detail)} characters")


def check_labels(labels: np.ndarray, segments: tuple[np.ndarray, ...]) -> None:
    """Raises WrongResult unless these are label rows of an image, and () or a polygon for each."""
    require(labels.dtype == np.float32 and labels.ndim == 2 and labels.shape[1] == 5, "labels of another form")
    require(bool(np.isfinite(labels).all()), "a label that is not finite")
    require(
        bool((labels[:, 0] == np.floor(labels[:, 0])).all()) and bool((labels[:, 0] >= 0).all()), "an impossible class"
    )
    require(bool(((labels[:, 1:] >= 0) & (labels[:, 1:] <= 1)).all()), "a box outside its image")
    require(bool((labels[:, 3:] > 0).all()), "a box without area")
    require(len(segments) in (0, len(labels)), "polygons are not as many as labels")
    for polygon in segments:
        require(
            polygon.dtype == np.float32 and polygon.ndim == 2 and polygon.shape[1] == 2, "a polygon of another form"
        )
        require(bool(np.isfinite(polygon).all()), "a polygon that is not finite")


class CacheTarget:
    """Reads the label cache of a small data set: what cannot be used is not, what is used could have been written.

    The inputs hold FOLDER_MARK where a cache has the set's folder, so that they mean the same on every machine.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "set"
        self._images = self._folder / "images"
        self._cache = self._folder / "labels.index.cache"
        write_data_set(self._folder)

    def __call__(self, data: bytes) -> None:
        for content in {data, _with_folder(data, FOLDER_MARK, str(self._folder))}:
            self._cache.write_bytes(content)
            with documented_errors():
                index = self._index()
                require(index.counts["images"] + index.counts["dropped"] == 3, "an image vanished, or one was made up")
                for record in index.records:
                    check_labels(record.labels, record.segments)
                    require(record.width > 0 and record.height > 0, "an image without a size")
                for line in [*index.summary().splitlines(), *map(str, index.problems)]:
                    require(line.isprintable(), f"control characters are shown: {line[:200]!r}")

    def fresh_cache(self) -> bytes:
        """The cache that the data set gets when it is read for the first time."""
        self._cache.unlink(missing_ok=True)
        self._index()
        return _with_folder(self._cache.read_bytes(), str(self._folder), FOLDER_MARK)

    def _index(self) -> DatasetIndex:
        return build_index([self._images], 3, quiet=True)


def write_data_set(folder: Path) -> None:
    """Writes a data set of three images with boxes, with polygons and without labels."""
    rows = {"a": "0 0.5 0.5 0.2 0.3\n1 2 0.5 0.1 0.1\n", "b": "2 0.1 0.1 0.4 0.1 0.4 0.6\n0 0.5 0.5 1 1\n"}
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in ("a", "b", "c"):
        path = folder / f"images/{name}.png"
        cv2.imwrite(str(path), np.zeros((48, 64, 3), np.uint8))
        os.utime(path, ns=(STAMP, STAMP))
        if name in rows:
            (folder / f"labels/{name}.txt").write_text(rows[name])


def _with_folder(data: bytes, old: str, new: str) -> bytes:
    """A cache with another folder in its paths; what cannot be read as one stays as it is."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            content = {name: arrays[name] for name in arrays.files}
        header = json.dumps(json.loads(content["header"].tobytes())).replace(
            json.dumps(old)[1:-1], json.dumps(new)[1:-1]
        )
        content["header"] = np.frombuffer(header.encode(), np.uint8)
        stream = io.BytesIO()
        np.savez(stream, allow_pickle=False, **content)
    except Exception:  # anything may be wrong with it, and the reader shall see it as it is
        return data
    return stream.getvalue()


class ConvertTarget:
    """Converts a VOC annotation (XML) or a COCO file (JSON): what is written has nothing wrong."""

    def __init__(self, folder: Path) -> None:
        self._source, self._out = folder / "source", folder / "out"
        write_data_set(self._source)
        (self._source / "Annotations").mkdir(exist_ok=True)
        (self._source / "JPEGImages").mkdir(exist_ok=True)
        (self._source / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
        for name in ("a", "b"):
            shutil.copyfile(self._source / f"images/{name}.png", self._source / f"JPEGImages/{name}.png")
        box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
        valid = f"<annotation><object><name>cat</name>{box}</object></annotation>"
        (self._source / "Annotations/b.xml").write_text(valid)
        (self._source / "ImageSets/Main/train.txt").write_text("a\n")
        (self._source / "ImageSets/Main/val.txt").write_text("b\n")
        coco = {
            "images": [{"id": 1, "file_name": "b.png"}],
            "annotations": [],
            "categories": [{"id": 1, "name": "cat"}],
        }
        (self._source / "val.json").write_text(json.dumps(coco))

    def __call__(self, data: bytes) -> None:
        shutil.rmtree(self._out, ignore_errors=True)
        if data.lstrip()[:1] == b"<":
            (self._source / "Annotations/a.xml").write_bytes(data)
            words = ["voc", "--source", str(self._source)]
        else:
            (self._source / "train.json").write_bytes(data)
            files = [f"{split}={self._source / split}.json" for split in ("train", "val")]
            words = ["coco", "--annotations", *files, "--images", str(self._source / "JPEGImages"), "--segments"]
        with documented_errors():
            path, report = convert(parse_args([*words, "--out", str(self._out)]))
            require(all(line.isprintable() for line in report.text().splitlines()), "its report has control characters")
            self._check_written(path)

    def _check_written(self, path: Path) -> None:
        try:
            config = load_dataset_config(path)
        except UserError as error:
            raise WrongResult(f"the data yaml that was written is refused: {error}") from error
        for file in self._out.glob("labels/*/**/*.txt"):
            parsed = parse_labels(file.read_bytes())
            require(not parsed.issues, f"a label file that was written has {parsed.issues[:1]}")
            require(bool((parsed.labels[:, 0] < config.nc).all()), "a class that the data yaml does not have")


TARGETS: dict[str, Callable[[Path], Target]] = {
    "checkpoint": CheckpointTarget,
    "yaml": YamlTarget,
    "labels": LabelsTarget,
    "cache": CacheTarget,
    "convert": ConvertTarget,
}
