"""Files that were made to mislead or to fill the memory: one line each, at once, and nothing of them runs."""

from __future__ import annotations

import copy
import pickle
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints.__main__ import convert_checkpoint, inspect_file
from checkpoints.checkpoint import FORMAT, load_checkpoint, load_model, save_checkpoint, strip_checkpoint
from checkpoints.pickled.archive import LEGACY_MAGIC
from checkpoints.pickled.unpickle import unpickle
from checkpoints.upstream.write import save_upstream
from models.yolo import Model
from tests.unit.checkpoints.pickled.pickle_toys import g, integer, storage, tensor, u, write_legacy, write_zip
from utils.errors import UserError

YAML: dict[str, Any] = {
    "nc": 2,
    "anchors": [[10, 13, 16, 30, 33, 23]],
    "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [8, 3, 2]], [-1, 1, "C3", [8]]],
    "head": [[-1, 1, "Conv", [8, 3, 2]], [[3], 1, "Detect", ["nc", "anchors"]]],
}
MEBIBYTE = 1 << 20


@pytest.fixture
def bounded() -> Iterator[None]:
    """A bound on the memory of Python's objects and on time; tensors have their own in the tests."""
    tracemalloc.start()
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200 * MEBIBYTE, f"{peak >> 20} MiB"
    assert seconds < 20


def tup(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def mapping(**entries: bytes) -> bytes:
    return b"}(" + b"".join(u(key) + value for key, value in entries.items()) + b"u"


def pickled(value: Any) -> bytes:
    """Instructions of plain values, to stand inside others."""
    return pickle.dumps(value, 2)[2:-1].replace(b"q\x00", b"", 1) if value in ([], {}) else _plain(value)


def _plain(value: Any) -> bytes:
    if isinstance(value, dict):
        return b"}(" + b"".join(_plain(key) + _plain(item) for key, item in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(_plain, value)) + b"e"
    return u(value) if isinstance(value, str) else integer(value)


def own(state_dict: bytes, before: bytes = b"", yaml: dict[str, Any] | None = None, **entries: bytes) -> bytes:
    """The pickle of a checkpoint of ours."""
    model = mapping(
        yaml=_plain({"backbone": [], "head": [], "nc": 1} if yaml is None else yaml),
        nc=b"K\x01",
        family=u("yolov5"),
        names=b"]",
        stride=b"]",
        state_dict=state_dict,
    )
    return b"\x80\x02" + before + mapping(format=u(FORMAT), format_version=b"K\x01", model=model, **entries) + b"."


def payload(model: Model, **changes: Any) -> dict[str, Any]:
    entry = {
        "yaml": model.yaml,
        "state_dict": model.state_dict(),
        "names": ["a", "b"],
        "nc": 2,
        "stride": model.stride.tolist(),
        "family": model.family,
    }
    return {"model": {**entry, **changes}}


# -- many small claims -------------------------------------------------------------------------------------------------


def view(count: int) -> bytes:
    """A view that repeats one storage of four values `count` times."""
    shape = tup(integer(count)) + tup(integer(0))
    return g("torch._utils", "_rebuild_tensor_v2") + tup(b"h\x01", integer(0), shape, b"\x89", b"N") + b"R"


HALF = storage(kind="HalfStorage") + b"q\x010"
MANY_VIEWS = b"}(" + b"".join(u(f"w{i}") + view(1 << 22) for i in range(500)) + b"u"
ONE_VIEW_MANY_TIMES = view(1 << 22) + b"q\x020"
NAMED_AGAIN = b"}(" + b"".join(u(f"w{i}") + b"h\x02" for i in range(500)) + b"u"


@pytest.mark.parametrize(
    "data",
    [
        own(MANY_VIEWS, HALF),
        own(NAMED_AGAIN, HALF + ONE_VIEW_MANY_TIMES),
        own(b"}", HALF + ONE_VIEW_MANY_TIMES, teacher=NAMED_AGAIN),
        own(b"}", HALF + ONE_VIEW_MANY_TIMES, training=mapping(state_dict=NAMED_AGAIN)),
        b"\x80\x02" + HALF + ONE_VIEW_MANY_TIMES + mapping(state_dict=NAMED_AGAIN) + b".",
    ],
    ids=["many views", "one view, many names", "beside the model", "of a training", "weights alone"],
)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_tensors_that_repeat_themselves_in_all(tmp_path: Path, bounded: None, data: bytes, legacy: bool) -> None:
    """Each is as large as one that YOLOv5 leaves behind; together they would be gigabytes."""
    path = tmp_path / "bomb.pt"
    if legacy:
        write_legacy(path, data)
    else:
        write_zip(path, data, {"0": bytes(8)})
    if legacy:  # whose storage is twice as long
        path.write_bytes(path.read_bytes()[:-16] + bytes(8))
    with pytest.raises(UserError, match="repeat themselves beyond the size of the file"):
        load_checkpoint(path, architecture=False)


def test_lists_that_double(tmp_path: Path, bounded: None) -> None:
    """Forty lists of the one before, twice: nothing in memory, and without end once it is written out."""
    lists = b"]K\x00aq\x02" + b"".join(
        b"0](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(2, 35)
    )
    path = write_zip(tmp_path / "bomb.pt", own(b"}", metrics=lists))
    for use in (lambda: convert_checkpoint(path, tmp_path / "out.pt"), lambda: strip_checkpoint(path, half=True)):
        with pytest.raises(UserError, match="nested without end"):
            use()


BIG = b"(" + b"N" * 300_000 + b"tq\x050"
TEXT = u("x" * 3_000_000) + b"q\x050"
CONV = g("models.common", "Conv")


@pytest.mark.parametrize(
    "data",
    [
        BIG + b"](" + (g("torch._utils", "_rebuild_parameter") + b"h\x05R") * 3000 + b"e",
        b"}(" + b"K\x00N" + b"".join(u(str(i)) + b"N" for i in range(50_000)) + b"uq\x050]("
        + (CONV + b")\x81h\x05b") * 3000 + b"e",
        TEXT + b"](" + b"h\x05h\x05\x93" * 3000 + b"e",
        TEXT + b"](" + (g("builtins", "getattr") + CONV + b"h\x05\x86R") * 3000 + b"e",
        TEXT + b"](" + (g("builtins", "complex") + b"h\x05\x85R") * 3000 + b"e",
        b"B" + struct.pack("<L", 36_000) + bytes(36_000) + b"q\x050" + g("numpy", "dtype") + u("U9000")
        + b"\x89\x88\x87Rq\x060](" + (g("numpy.core.multiarray", "scalar") + b"h\x06h\x05\x86R") * 20_000 + b"e",
    ],
    ids=["arguments", "state of odd keys", "names", "methods", "numbers as text", "numpy text"],
)  # fmt: skip
def test_one_large_value_that_is_used_again_and_again(tmp_path: Path, bounded: None, data: bytes) -> None:
    with pytest.raises(UserError, match="damaged or malicious"):
        unpickle(write_zip(tmp_path / "bomb.pt", b"\x80\x02" + data + b"."))


# -- what PyTorch and numpy refuse in their own words ------------------------------------------------------------------


def numpy_scalar(code: str, raw: bytes) -> bytes:
    value = g("numpy", "dtype") + tup(u(code), b"\x89", b"\x88") + b"R"
    return g("numpy.core.multiarray", "scalar") + tup(value, b"B" + struct.pack("<L", len(raw)) + raw) + b"R"


def tensor_of(made_of: bytes, size: int, stride: int) -> bytes:
    shape = tup(integer(size)) + tup(integer(stride))
    return g("torch._utils", "_rebuild_tensor_v2") + tup(made_of, integer(0), shape, b"\x89", b"N") + b"R"


@pytest.mark.parametrize(
    "data",
    [
        tensor_of(tensor_of(storage(), 1 << 20, 0), 1 << 20, 1),
        tensor((1 << 48, 1 << 48, 0), (1, 1, 1)),
        g("torch._utils", "_rebuild_tensor_v3")
        + tup(
            tensor((2, 2), (1, 2)), integer(0), tup(integer(1)), tup(integer(1)), b"\x89", b"N", g("torch", "float32")
        )
        + b"R",
        numpy_scalar("<U1", b"\xff" * 4),
        numpy_scalar("<U2", b"\xff\xff\x11\x00" * 2),
        tensor_of(b"N", 1, 1),
    ],
    ids=["a view of a view", "sides of an empty tensor", "typed by strides", "no character", "neither", "no storage"],
)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_impossible_values(tmp_path: Path, data: bytes, legacy: bool) -> None:
    path = tmp_path / "odd.pt"
    data = b"\x80\x02}" + u("model") + data + b"s."
    path = write_legacy(path, data) if legacy else write_zip(path, data, {"0": bytes(16)})
    with pytest.raises(UserError, match="damaged or malicious") as error:
        load_checkpoint(path)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("protocol", [tensor((2,), (1,), numel=2), numpy_scalar("<f8", bytes(8)), u("1001"), b"\x88"])
def test_a_header_of_the_older_form_that_is_something_else(tmp_path: Path, protocol: bytes) -> None:
    path = tmp_path / "odd.pt"
    system = pickle.dumps({"little_endian": True}, 2)
    path.write_bytes(LEGACY_MAGIC + b"\x80\x02" + protocol + b"." + system + b"\x80\x02}." + bytes(400))
    with pytest.raises(UserError, match="its header is not one that PyTorch writes"):
        unpickle(path)


# -- the container -----------------------------------------------------------------------------------------------------


def directory_entry(name: bytes, start: int, size: int, extra: bytes = b"") -> bytes:
    sizes = (0, size, size)
    return struct.pack(
        "<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, *sizes, len(name), len(extra), 0, 0, 0, 0, start
    ) + (name + extra)


def end_record(count: int, size: int, start: int, comment: bytes = b"") -> bytes:
    return (
        struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count & 0xFFFF, count & 0xFFFF, size, start, len(comment))
        + comment
    )


def large_end_records(count: int, size: int, start: int, end: int) -> bytes:
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, start)
    return record + struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1)


def test_a_directory_of_a_million_entries(tmp_path: Path, bounded: None) -> None:
    """Its size is allowed, and so would be the number of entries that the common end record can hold."""
    entry = directory_entry(b"", 0, 0)
    directory = entry * 700_000
    start = len(b"PK\x03\x04")
    path = tmp_path / "many.pt"
    path.write_bytes(b"PK\x03\x04" + directory + end_record(700_000, len(directory), start))
    with pytest.raises(UserError, match="damaged or malicious"):
        unpickle(path)
    large = large_end_records(700_000, len(directory), start, start + len(directory))
    path.write_bytes(b"PK\x03\x04" + directory + large + end_record(0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF))
    with pytest.raises(UserError, match="700000 entries, at most 100000"):
        unpickle(path)


def test_a_large_record_without_its_locator_counts_for_nothing(tmp_path: Path) -> None:
    """It would say that the directory is small, while the common record, which then counts, says otherwise."""
    good = write_zip(tmp_path / "z.pt", b"N.").read_bytes()
    end = good.rfind(b"PK\x05\x06")
    fake = large_end_records(1, 50, 0, 0)[:-20] + bytes(20)
    (tmp_path / "z.pt").write_bytes(good[:end] + fake + end_record(1, 0xF0000000, 0))
    with pytest.raises(UserError, match="larger than any checkpoint's"):
        unpickle(tmp_path / "z.pt")


@pytest.mark.parametrize("change", ["prepended", "appended", "two directories", "a gap"])
def test_directories_that_two_readers_would_find_in_two_places(tmp_path: Path, change: str) -> None:
    good = write_zip(tmp_path / "z.pt", b"N.").read_bytes()
    other = write_zip(tmp_path / "o.pt", b"K\x07.").read_bytes()
    end = good.rfind(b"PK\x05\x06")
    raw = {
        "prepended": b"PK\x03\x04" + good,
        "appended": good + b"x",
        "two directories": other + good,
        "a gap": good[:end] + bytes(8) + good[end:],
    }[change]
    (tmp_path / "z.pt").write_bytes(raw)
    with pytest.raises(UserError, match="damaged or malicious|cut short"):
        unpickle(tmp_path / "z.pt")


def test_entries_that_share_their_bytes(tmp_path: Path, bounded: None) -> None:
    """A hundred storages at one place: none is larger than the file, and neither need their sum be."""
    raw = bytearray(write_zip(tmp_path / "z.pt", b"N.", {str(i): bytes(100) for i in range(100)}).read_bytes())
    first = position = raw.find(b"PK\x01\x02")
    for _ in range(50):
        position = raw.find(b"PK\x01\x02", position + 1)
        raw[position + 42 : position + 46] = raw[first + 42 : first + 46]
    (tmp_path / "z.pt").write_bytes(raw)
    with pytest.raises(UserError, match="claim more than the bytes up to the next one"):
        unpickle(tmp_path / "z.pt")


def test_what_other_tools_write_into_a_zip_file_is_read(tmp_path: Path) -> None:
    """Extra fields, comments, and sizes in the large form."""
    torch.save({"w": torch.arange(4.0)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as source, zipfile.ZipFile(tmp_path / "b.pt", "w") as target:
        target.comment = b"written again"
        for name in source.namelist():
            with target.open(name, "w", force_zip64=True) as entry:
                entry.write(source.read(name))
    assert torch.equal(unpickle(tmp_path / "b.pt").content["w"], torch.arange(4.0))


# -- architectures in files --------------------------------------------------------------------------------------------


def rows(count: int) -> list[Any]:
    return [[-1, 1, "nn.Identity", []]] * count


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": rows(3000)}, "has 3000 rows"),
        ({"backbone": [[-1, 1000, "nn.SiLU", []]] * 400 + YAML["backbone"]}, "many more layers than its"),
        ({"head": [[[3] * 5000, 1, "Detect", ["nc", "anchors"]]]}, "reads 5000 others"),
        ({"anchors": [[10, 13]] * 5000}, "more anchors than any detector"),
        ({"anchors": [[10, 13] * 5000]}, "more anchors than any detector"),
        ({"anchors": 100_000}, "more anchors than any detector"),
        ({"backbone": [[-1, 1, "Conv", [10**6, 3, 2]], *YAML["backbone"][1:]]}, "width|parameters"),
        ({"backbone": [[-1, 1, "Conv", [8, 10**9, 2]], *YAML["backbone"][1:]]}, "impossible block"),
        ({"backbone": [*YAML["backbone"][:2], [-1, 1, "SwinTransformerBlock", [8, 2, 1, 900]]]}, "a window of 900"),
        ({"channel_plan": {"model.1.conv": [99_999, 99_999]}}, "parameters|cannot be built"),
        ({"channel_plan": {"x\n" * 100_000: [1]}}, "too long|no such layer|expected"),
        ({"channel_plan": {"model.0.conv": ["x\n" * 100_000]}}, "expected 2 number"),
    ],
)
@pytest.mark.parametrize("form", ["own", "upstream"])
def test_architectures_beyond_their_weights(
    tmp_path: Path, bounded: None, change: dict[str, Any], message: str, form: str
) -> None:
    path = tmp_path / "m.pt"
    model = Model(copy.deepcopy(YAML))
    if form == "own":
        save_checkpoint(path, payload(model, yaml={**model.yaml, **change}))
    else:
        model.yaml = {**model.yaml, **change}
        save_upstream(model, path)
    peak = tensor_peak()
    with pytest.raises(UserError, match=message) as error:
        load_model(path)
    assert str(error.value).isprintable() and len(str(error.value)) < 500
    assert tensor_peak() - peak < 900 * MEBIBYTE


def tensor_peak() -> int:
    """Bytes of this process's memory at most so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def test_a_strongly_pruned_model_is_not_taken_for_malicious(tmp_path: Path) -> None:
    from pruning import prune

    model = Model({**copy.deepcopy(YAML), "width_multiple": 4.0})
    full = sum(p.numel() for p in model.parameters())
    prune(model, 0.9, by="params", image=torch.zeros(1, 3, 64, 64), round_to=1, min_keep=0.01)
    assert sum(p.numel() for p in model.parameters()) < full / 8
    save_checkpoint(tmp_path / "own.pt", payload(model))
    save_upstream(model, tmp_path / "upstream.pt")
    for name in ("own.pt", "upstream.pt"):
        load_model(tmp_path / name)


# -- text that reaches the terminal ------------------------------------------------------------------------------------

ESCAPE = "\x1b[31m\x07\n\u202e"


def escapes_in_own(path: Path) -> None:
    model = Model(copy.deepcopy(YAML))
    changes = {
        "yaml": {**model.yaml, "yaml_file": ESCAPE, "activation": ESCAPE, "scale": ESCAPE},
        "names": [ESCAPE, "b"],
        "family": ESCAPE,
        ESCAPE: 1,
    }
    extra = {ESCAPE: 1, "metrics": {ESCAPE: ESCAPE}, "hyp": {ESCAPE: ESCAPE}, "training": {ESCAPE: 1}}
    save_checkpoint(path, {**payload(model, **changes), **extra})


def escapes_in_upstream(path: Path) -> None:
    from checkpoints.checkpoint import write_archive
    from checkpoints.upstream.pickle import StandInPickle

    model = Model(copy.deepcopy(YAML))
    model.names = [ESCAPE, "b"]
    model.yaml = {**model.yaml, "yaml_file": ESCAPE}
    save_upstream(model, path, hyp={"lr0": ESCAPE})
    content = unpickle(path).content
    content |= {"date": ESCAPE, "version": ESCAPE, "train_metrics": {ESCAPE: 1.0}, "opt": {"imgsz": ESCAPE}}
    write_archive(path, content, StandInPickle)


def escapes_in_another_file(path: Path) -> None:
    torch.save({ESCAPE: ESCAPE, "state_dict": {ESCAPE: torch.zeros(1), "x": {}}}, path)


def escapes_in_weights(path: Path) -> None:
    torch.save({ESCAPE: torch.full((1,), torch.nan)}, path)


@pytest.mark.parametrize("write", [escapes_in_own, escapes_in_upstream, escapes_in_another_file, escapes_in_weights])
def test_control_characters_of_a_file_do_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], write: Callable[[Path], None]
) -> None:
    path = tmp_path / "e.pt"
    write(path)
    try:
        inspect_file(path)
    except UserError as error:
        assert str(error).isprintable()
    for use in (load_model, lambda path: load_checkpoint(path, architecture=False)):
        try:
            use(path)
        except UserError as error:
            assert str(error).isprintable()
    shown = capsys.readouterr().out
    assert shown and shown.replace("\n", "").isprintable()


def test_an_own_file_whose_tensors_have_odd_names_is_damaged(tmp_path: Path) -> None:
    model = Model(copy.deepcopy(YAML))
    save_checkpoint(tmp_path / "m.pt", payload(model, state_dict={ESCAPE: torch.zeros(1)}))
    with pytest.raises(UserError, match="is damaged"):
        load_checkpoint(tmp_path / "m.pt")


def test_lists_of_keys_are_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Model(copy.deepcopy(YAML))
    many = {f"key{i}": i for i in range(5000)}
    save_checkpoint(tmp_path / "m.pt", {**payload(model), **many, "hyp": many})
    inspect_file(tmp_path / "m.pt")
    shown = capsys.readouterr().out
    assert "(5000 in all)" in shown and len(shown) < 10_000


def test_an_architecture_that_does_not_fit_names_the_file_and_the_layer(tmp_path: Path) -> None:
    model, path = Model(YAML), tmp_path / "odd.pt"
    yaml = copy.deepcopy(model.yaml)
    yaml["backbone"][1][0] = -9
    entry = {"yaml": yaml, "state_dict": model.state_dict(), "names": ["a", "b"], "nc": 2, "stride": [16]}
    save_checkpoint(path, {"model": entry})
    with pytest.raises(UserError, match=r"odd\.pt.*layer 1 \(Conv\): from -9 points before the first layer"):
        load_model(path)
