"""The restricted unpickler: what it understands, and that nothing of a malicious file runs or fills the memory."""

from __future__ import annotations

import argparse
import collections
import datetime
import os
import pathlib
import pickle
import struct
import time
import tracemalloc
import types
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from checkpoints.pickled import archive as archive_module
from checkpoints.pickled import unpickle as unpickle_module
from checkpoints.pickled import zip_directory
from checkpoints.pickled.rebuild import StandIn
from checkpoints.pickled.unpickle import unpickle
from tests.unit.checkpoints.pickled.pickle_toys import g, integer, storage, tensor, u, write_legacy, write_zip
from utils.errors import UserError


@pytest.fixture
def guard(tmp_path: Path) -> Iterator[Path]:
    """A file that a malicious command would create, and a bound on time and memory."""
    marker = tmp_path / "executed"
    tracemalloc.start()
    start = time.perf_counter()
    yield marker
    seconds = time.perf_counter() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert not marker.exists(), "a command of the file was executed"
    assert peak < 64 << 20, f"{peak >> 20} MiB"
    assert seconds < 20


class Runs:
    """An object that runs a command when a common unpickler reads it."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


# -- what it reads -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_tensors_and_plain_values(tmp_path: Path, legacy: bool) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    content = {
        "contiguous": base,
        "view": base[1:3, ::2],
        "transposed": base.t(),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(7),
        "half": torch.tensor([1.5, -2.0]).half(),
        "bfloat16": torch.tensor([1.5, -2.0]).bfloat16(),
        "bool": torch.tensor([True, False]),
        "parameter": nn.Parameter(torch.ones(2)),
        "nested": collections.OrderedDict(a=[1, 2.5, None, True], b=(1, "x"), c={1, 2}, d=frozenset(["k"])),
        "bytes": b"\x00\xff",
        "big": 1 << 200,
        "size": torch.Size([2, 3]),
    }
    path = tmp_path / "plain.pt"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    read = unpickle(path)
    assert read.classes == set()
    assert list(read.content) == list(content)
    for key, value in content.items():
        if isinstance(value, torch.Tensor):
            assert read.content[key].dtype == value.dtype
            assert torch.equal(read.content[key], value), key
        else:
            assert read.content[key] == value, key
    assert read.content["contiguous"].untyped_storage().data_ptr() == read.content["view"].untyped_storage().data_ptr()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_modules_become_inert(tmp_path: Path, legacy: bool) -> None:
    """The older container holds the source code of the classes besides, which is not looked at."""
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    path = tmp_path / "module.pt"
    torch.save({"model": module}, path, _use_new_zipfile_serialization=not legacy)
    read = unpickle(path)
    model = read.content["model"]
    assert type(model) is StandIn and not callable(model)
    assert model.class_name == "torch.nn.modules.container.Sequential"
    assert {"torch.nn.modules.conv.Conv2d", "torch.nn.modules.batchnorm.BatchNorm2d"} <= read.classes
    conv = model.attributes["_modules"]["0"]
    assert torch.equal(conv.attributes["_parameters"]["weight"], module[0].weight)


def test_values_beside_the_weights(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = {
            "best_fitness": np.array([0.25]),
            "array": np.arange(6, dtype=np.int64).reshape(2, 3),
            "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
            "number": np.float64(0.5),
            "flag": np.bool_(True),
            "opt": argparse.Namespace(epochs=3, data="x.yaml"),
            "path": pathlib.PurePosixPath("/data/runs/exp"),
            "counter": collections.Counter({3: 1}),
            "default": collections.defaultdict(list, a=[1]),
            "device": torch.device("cuda:0"),
            "dtype": torch.float16,
        }
        torch.save(content, tmp_path / "values.pt")
    read = unpickle(tmp_path / "values.pt").content
    assert np.array_equal(read["best_fitness"], [0.25])
    assert np.array_equal(read["array"], content["array"]) and read["array"].dtype == np.int64
    assert np.array_equal(read["fortran"], content["fortran"])
    assert read["number"] == 0.5 and read["flag"] is True
    assert read["opt"].attributes == {"epochs": 3, "data": "x.yaml"}
    assert read["path"] == "/data/runs/exp"
    assert read["counter"] == {3: 1} and read["default"] == {"a": [1]}
    assert read["device"] == "cuda:0" and read["dtype"] is torch.float16


def test_a_replaced_method_is_a_name_only(tmp_path: Path) -> None:
    """Fused upstream layers pickle `forward` as getattr(layer, "fuseforward")."""
    data = (
        b"\x80\x02}"
        + u("forward")
        + g("__builtin__", "getattr")
        + g("models.common", "Conv")
        + b")\x81"
        + u("fuse")
        + b"\x86Rs."
    )
    read = unpickle(write_zip(tmp_path / "m.pt", data))
    assert read.content["forward"].class_name == "models.common.Conv.fuse"


@pytest.mark.parametrize(
    "name",
    [
        "models.yolo.Model", "models.yolo.IAuxDetect", "models.common.C3", "models.experimental.MixConv2d",
        "ultralytics.nn.tasks.DetectionModel", "ultralytics.nn.modules.Conv", "ultralytics.nn.modules.block.C2f",
        "ultralytics.yolo.utils.IterableSimpleNamespace", "ultralytics.utils.IterableSimpleNamespace",
        "ultralytics.utils.loss.v8DetectionLoss", "ultralytics.utils.tal.TaskAlignedAssigner",
        "torch.nn.modules.activation.SiLU", "utils.activations.Hardswish",
    ],
)  # fmt: skip
def test_known_classes(tmp_path: Path, name: str) -> None:
    module, _, cls = name.rpartition(".")
    data = b"\x80\x02" + g(module, cls) + b")\x81}" + u("nc") + b"K\x03sb."
    read = unpickle(write_zip(tmp_path / "c.pt", data))
    assert read.content.class_name == name
    assert read.content.attributes == {"nc": 3}
    assert read.classes == {name}


# -- what it refuses ---------------------------------------------------------------------------------------------------


def malicious_pickles(marker: Path) -> dict[str, bytes]:
    command = f"touch {marker}"
    call = u(command) + b"\x85R"
    system = g("os", "system")
    conv = g("models.common", "Conv") + b")\x81"
    return {
        "reduce": pickle.dumps(Runs(os.system, command), 2),
        "stack global": pickle.dumps(Runs(os.system, command), 4),
        "text protocol": pickle.dumps(Runs(os.system, command), 0),
        "inst": f"(S'{command}'\nios\nsystem\n.".encode(),
        "obj": b"(" + system + u(command) + b"o.",
        "builtin eval": g("builtins", "eval") + call + b".",
        "builtin exec": g("__builtin__", "exec") + call + b".",
        "getattr of a module": g("builtins", "getattr") + g("os", "path") + u("join") + b"\x86R.",
        "getattr of a class": g("builtins", "getattr") + g("models.common", "Conv") + u("__init__") + b"\x86R.",
        "hidden in a module": b"}" + u("model") + conv + b"}" + u("hook") + system + call + b"sbs.",
        "a dotted name": b"\x80\x04" + u("models.common") + u("Conv.__init__.__globals__") + b"\x93.",
        "a path as a name": g("models/../os", "system") + call + b".",
        "setstate": b"}" + u("__setstate__") + system + b"s" + conv + b"\x85R.",
        "new object of a function": system + u(command) + b"\x85\x81.",
        "new object with keywords": b"\x80\x04" + g("models.common", "Conv") + b")}" + u("a") + b"K\x01s\x92.",
        "extension code": b"\x80\x02\x82\x01.",
        "extension code 4": b"\x80\x02\x84\x01\x00\x00\x00.",
        "persistent id": u("storage") + b"Q.",
        "persistent text": b"Pos.system\n.",
        "persistent tuple": b"(" + u("module") + g("torch", "FloatStorage") + u("0") + u("cpu") + b"K\x01tQ.",
        "nested pickle": g("pickle", "loads") + u("x") + b"\x85R.",
        "nested archive": g("torch.serialization", "load") + u("x.pt") + b"\x85R.",
        "storage from bytes": g("torch.storage", "_load_from_bytes") + u("x") + b"\x85R.",
        "jit": g("torch.jit", "load") + u("x") + b"\x85R.",
        "subprocess": g("subprocess", "Popen") + call + b".",
        "runpy": g("runpy", "run_path") + call + b".",
        "import": g("builtins", "__import__") + u("os") + b"\x85R.",
        "numpy loader": g("numpy", "load") + u("x.npy") + b"\x85R.",
        "object array": g("numpy", "dtype") + u("O8") + b"\x89\x88\x87R.",
        "builds a class": g("models.common", "Conv") + b"}" + u("forward") + system + b"sb.",
        "calls a string": u("os.system") + call + b".",
        "new object of a function with keywords": system + u(command) + b"\x85}\x92.",
        "new object by name": g("copyreg", "__newobj__") + system + u(command) + b"\x86R.",
        "reconstructor": g("copy_reg", "_reconstructor") + g("os", "_wrap_close") + g("__builtin__", "object")
        + b"N\x87R.",
        "partial": g("functools", "partial") + system + u(command) + b"\x86R.",
        "attrgetter": g("operator", "attrgetter") + u("system") + b"\x85R.",
        "type": g("builtins", "type") + u("x") + b")}\x87R.",
        "code object": g("types", "CodeType") + b")R.",
        "function object": g("types", "FunctionType") + b")R.",
        "import module": g("importlib", "import_module") + u("os") + b"\x85R.",
        "library": g("ctypes", "CDLL") + u("x.so") + b"\x85R.",
        "library of operators": g("torch", "ops.load_library") + u("x.so") + b"\x85R.",
        "extension from source": g("torch.utils.cpp_extension", "load_inline") + u("x") + b"\x85R.",
        "hub": g("torch.hub", "load") + u("x/y") + u("z") + b"\x86R.",
        "numpy command": g("numpy.testing._private.utils", "runstring") + u(command) + b"}\x86R.",
        "pip": g("pip", "main") + b"]\x85R.",
        "globals of a method": g("builtins", "getattr") + g("builtins", "getattr") + conv + u("forward") + b"\x86R"
        + u("__globals__") + b"\x86R.",
        "a function as a hook": b"}" + u("_forward_hooks") + b"}K\x00" + system + b"ss.",
        "a rebuilt tensor by a function": g("torch._tensor", "_rebuild_from_type_v2") + b"(" + system
        + g("torch", "Tensor") + u(command) + b"\x85}tR.",
        "a default factory": g("collections", "defaultdict") + system + b"\x85R.",
        "extension code 2": b"\x80\x02\x83\x01\x01.",
        "persistent number": b"K\x07Q.",
        "persistent class": conv + b"Q.",
        "persistent module of a function": b"(" + u("module") + system + u("x.py") + u("") + b"tQ" + call + b".",
        "persistent module of a number": b"(" + u("module") + b"K\x07" + u("x.py") + u("import os") + b"tQ.",
        "persistent storage without a type": b"(" + u("storage") + u("FloatStorage") + u("0") + u("cpu") + b"K\x01tQ.",
        "persistent storage of a number": b"(" + u("storage") + g("torch", "FloatStorage") + b"K\x00" + u("cpu")
        + b"K\x01tQ.",
        "persistent storage of true": b"(" + u("storage") + g("torch", "FloatStorage") + u("0") + u("cpu") + b"\x88tQ.",
        "persistent storage of six": b"(" + u("storage") + g("torch", "FloatStorage") + u("0") + u("cpu")
        + b"K\x01K\x01tQ.",
        "calls a stand-in": conv + call + b".",
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(malicious_pickles(Path("x"))))
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_nothing_is_executed(tmp_path: Path, guard: Path, name: str, legacy: bool) -> None:
    data = malicious_pickles(guard)[name]
    path = tmp_path / "evil.pt"
    if legacy:
        write_legacy(path, data)
    else:
        write_zip(path, data)
    with pytest.raises(UserError) as error:
        unpickle(path)
    assert "\n" not in str(error.value)
    assert "nothing of it was run" in str(error.value)


def test_all_refused_names_are_listed(tmp_path: Path, guard: Path) -> None:
    data = b"(" + g("os", "system") + u("x") + b"\x85R" + g("shutil", "rmtree") + g("models.yolo", "Model") + b"t."
    with pytest.raises(UserError, match=r"it names os\.system, shutil\.rmtree, which no supported"):
        unpickle(write_zip(tmp_path / "evil.pt", data))


def test_harmless_reading_of_the_same_names_as_text(tmp_path: Path) -> None:
    """Text that looks like a command is text."""
    assert unpickle(write_zip(tmp_path / "t.pt", b"\x80\x02" + u("os.system") + b".")).content == "os.system"


# -- bombs -------------------------------------------------------------------------------------------------------------


def doubling(times: int = 60) -> bytes:
    """A tuple of two tuples of two tuples ...: small, until something prints or copies it."""
    return b")" + b"2\x86" * times


def same_hash(count: int) -> list[bytes]:
    """Numbers whose hashes are equal: Python's hash of an integer is its remainder by 2 ** 61 - 1."""
    return [b"\x8a\x10" + ((1 << 62) + i * ((1 << 61) - 1)).to_bytes(16, "little") for i in range(count)]


def bombs() -> dict[str, bytes]:
    big = u("x" * 1_000_000)
    return {
        "tensor beyond its storage": tensor((1000,), (1,)),
        "tensor with an offset beyond": tensor((4,), (1,), offset=1),
        "negative size": tensor((-1,), (1,)),
        "negative stride": tensor((4,), (-1,), offset=3),
        "negative offset": tensor((4,), (1,), offset=-4),
        "endless repetition": tensor((1 << 40,), (0,)),
        "product overflow": tensor((1 << 32, 1 << 32), (0, 0)),
        "sizes of a million digits": tensor((1,), (1,))[:-1] + b"0" + g("torch._utils", "_rebuild_tensor_v2") + b"("
        + storage() + b"K\x00(\x8b" + struct.pack("<l", 400_000) + b"\x01" * 400_000 + b"q\x05" + b"h\x05" * 14
        + b"t(" + b"K\x01" * 15 + b"t\x89NtR",
        "a size that doubles": doubling() + b"q\x000" + g("torch._utils", "_rebuild_tensor_v2") + b"(" + storage()
        + b"K\x00h\x00\x85K\x01\x85\x89NtR",
        "a device that doubles": doubling() + b"q\x000" + g("torch", "device") + b"h\x00\x85R",
        "a dtype that doubles": doubling() + b"q\x000" + g("numpy", "dtype") + b"h\x00\x89\x88\x87R",
        "a numpy array of empty rows": g("numpy.core.multiarray", "_reconstruct") + g("numpy", "ndarray") + b"K\x00\x85"
        + u("b") + b"\x87R(K\x01" + integer(1 << 40) + b"K\x00\x86" + g("numpy", "dtype") + u("f8")
        + b"\x89\x88\x87R\x89" + g("_codecs", "encode") + u("") + u("latin1") + b"\x86Rtb",
        "many dimensions": tensor((1,) * 200, (1,) * 200),
        "storage larger than the file": tensor((4,), (1,), numel=1 << 40),
        "negative storage": tensor((1,), (1,), numel=-4),
        "missing storage": b"(" + u("storage") + g("torch", "FloatStorage") + u("9") + u("cpu") + b"K\x01tQ",
        "storage path": b"(" + u("storage") + g("torch", "FloatStorage") + u("../data.pkl") + u("cpu") + b"K\x01tQ",
        "huge declared text": b"X\xff\xff\xff\x7fabc",
        "huge declared bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"abc",
        "huge declared number": b"\x8b\xff\xff\xff\x7f1",
        "huge frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60),
        "copies of text": big + b"q\x000" + (g("_codecs", "encode") + b"h\x00" + u("latin1") + b"\x86R") * 100,
        "copies of a list": b"](" + b"N" * 100_000 + b"eq\x000" + (g("builtins", "list") + b"h\x00\x85R") * 400,
        "copies of a state": b"}q\x00(" + b"".join(u(str(i)) + b"N" for i in range(20_000)) + b"u0"
        + (g("models.common", "Conv") + b")\x81h\x00b") * 400,
        "numpy shape": g("numpy.core.multiarray", "_reconstruct") + g("numpy", "ndarray") + b"K\x00\x85" + u("b")
        + b"\x87R(" + b"K\x01" + integer(1 << 40) + b"\x85" + g("numpy", "dtype") + u("f8") + b"\x89\x88\x87R\x89"
        + g("_codecs", "encode") + u("abc") + u("latin1") + b"\x86Rtb",
        "recursive tuple as a key": b"}" + b")" + b"\x85" * 50_000 + b"Ns",
        "deep tuple in a set": b"\x80\x04\x8f(" + b")" + b"\x85" * 50_000 + b"\x90",
        "empty stack": b"0",
        "huge declared byte array": b"\x80\x05\x96" + struct.pack("<Q", 1 << 62),
        "huge declared text of protocol 4": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"abc",
        "huge declared bytes of protocol 3": b"\x80\x03B\xff\xff\xff\xff",
        "huge declared old text": b"T\xff\xff\xff\x7f",
        "negative length": b"\x8b\xff\xff\xff\xff",
        "negative old text": b"T\xff\xff\xff\xff",
        "out-of-band buffer": b"\x80\x05\x97",
        "read-only buffer": b"\x80\x05N\x98",
        "a number of ten million digits": b"I" + b"9" * 10_000_000 + b"\n",
        "a long number of ten million digits": b"L" + b"9" * 10_000_000 + b"L\n",
        "keys with one hash": b"}(" + b"N".join(same_hash(20_000)) + b"Nu",
        "set items with one hash": g("builtins", "set") + b"](" + b"".join(same_hash(20_000)) + b"e\x85R",
        "typed tensor of a wrong storage": g("torch._utils", "_rebuild_tensor_v3") + b"(" + storage() + b"K\x00"
        + b"K\x01\x85K\x01\x85\x89N" + g("torch", "float64") + b"}tR",
        "typed tensor beyond its bytes": g("torch._utils", "_rebuild_tensor_v3") + b"("
        + storage(kind="UntypedStorage", numel=16) + b"K\x00K\x05\x85K\x01\x85\x89N" + g("torch", "float32") + b"}tR",
        "a date that is none": g("datetime", "datetime") + g("_codecs", "encode") + u("abc") + u("latin1")
        + b"\x86R\x85R",
        "a date of month 99": g("datetime", "datetime") + g("_codecs", "encode") + u("\x07\xd0" + "\x63" * 8)
        + u("latin1") + b"\x86R\x85R",
        "no stop": b"N",
        "unknown memo": b"h\x07",
        "unknown opcode": b"\xff",
        "append to a tuple": b")Na",
        "items of a list": b"]NNs",
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(bombs()))
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_bombs_are_refused_before_they_grow(tmp_path: Path, guard: Path, name: str, legacy: bool) -> None:
    data = bombs()[name] + (b"" if name == "no stop" else b".")
    tracemalloc.reset_peak()
    path = tmp_path / "bomb.pt"
    path = write_legacy(path, data) if legacy else write_zip(path, data, {"0": bytes(16)})
    with pytest.raises(UserError, match="damaged or malicious|cut short") as error:
        unpickle(path)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "data",
    [
        b"N" + b"\x85" * 100_000 + b".",  # a hundred thousand tuples inside each other
        b"]" * 50_000 + b"a" * 49_999 + b".",  # lists
        b"]q\x00h\x00a.",  # a list inside itself
        b"Nr\xff\xff\xff\x7f.",  # a memo index of two thousand million
        b"]" + b"".join(b"q" + bytes([i]) + b"]h" + bytes([i]) + b"ah" + bytes([i]) + b"a" for i in range(40)) + b".",
    ],
    ids=["deep tuples", "deep lists", "recursive list", "memo index", "doubling lists"],
)
def test_harmless_curiosities_stay_small(tmp_path: Path, guard: Path, data: bytes) -> None:
    unpickle(write_zip(tmp_path / "odd.pt", data))


def test_a_state_cannot_change_what_a_stand_in_is(tmp_path: Path, guard: Path) -> None:
    """BUILD with special names, and with a slots state: attributes like any other."""
    names = ("__class__", "__dict__", "__reduce__", "__setstate__", "class_name", "attributes", "arguments")
    state = b"}(" + b"".join(u(name) + u("os.system") for name in names) + b"u"
    for data in (state, b"N" + state + b"\x86", state + b"N\x86"):
        read = unpickle(write_zip(tmp_path / "s.pt", g("models.common", "Conv") + b")\x81" + data + b"b.")).content
        assert type(read) is StandIn and read.class_name == "models.common.Conv" and read.arguments == ()
        assert read.attributes == dict.fromkeys(names, "os.system")


def test_functions_below_known_modules_are_names_only(tmp_path: Path, guard: Path) -> None:
    """A known module gives stand-ins, whatever is called by its name."""
    for module, name in (("ultralytics.utils.checks", "check_requirements"), ("torch.nn.modules.os", "system")):
        data = g(module, name) + u(f"touch {guard}") + b"\x85R."
        read = unpickle(write_zip(tmp_path / "f.pt", data)).content
        assert type(read) is StandIn and read.class_name == f"{module}.{name}"


def test_what_pytorch_and_python_leave_in_checkpoints(tmp_path: Path) -> None:
    moment = datetime.datetime(2023, 4, 5, 6, 7, 8, 9)
    weight = torch.zeros(2, requires_grad=True)
    content = {
        "date": moment,
        "slice": slice(1, None, 2),
        "range": range(0, 9, 2),
        "optimizer": torch.optim.SGD([weight], 0.1),
        "function": torch.nn.functional.relu,
        "wrapped": nn.DataParallel(nn.Conv2d(1, 1, 1)),
        "windows": pathlib.PureWindowsPath("C:/runs/exp"),
        "namespace": types.SimpleNamespace(a=1),
        "typed": torch.arange(4, dtype=torch.int16),
    }
    torch.save(content, tmp_path / "v.pt")
    read = unpickle(tmp_path / "v.pt").content
    assert read["date"] == "2023-04-05T06:07:08.000009"
    assert (read["slice"], read["range"]) == ("1:None:2", "0:9:2")
    assert read["optimizer"].class_name == "torch.optim.sgd.SGD"
    assert read["wrapped"].attributes["_modules"]["module"].short_name == "Conv2d"
    assert read["namespace"].attributes == {"a": 1} and "exp" in read["windows"]


def test_typed_tensors_of_plain_bytes(tmp_path: Path) -> None:
    """How newer PyTorch writes number types that have no storage class of their own."""
    data = g("torch._utils", "_rebuild_tensor_v3") + b"(" + storage(kind="UntypedStorage", numel=16) + b"K\x01"
    data += b"K\x02\x85K\x01\x85\x89N" + g("torch", "int32") + b"}tR."
    read = unpickle(write_zip(tmp_path / "t.pt", data, {"0": struct.pack("<4i", 1, -2, 3, 4)})).content
    assert read.dtype == torch.int32 and read.tolist() == [-2, 3]


def test_too_many_instructions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpickle_module, "MAX_OPCODES", 100)
    with pytest.raises(UserError, match="more than 100 instructions"):
        unpickle(write_zip(tmp_path / "long.pt", b"N0" * 60 + b"N."))


def test_repeated_views_that_yolov5_leaves_behind(tmp_path: Path) -> None:
    """Anchor grids are stored as one small storage, expanded over the grid."""
    torch.save({"grid": torch.arange(6.0).view(1, 3, 1, 1, 2).expand(1, 3, 80, 80, 2)}, tmp_path / "grid.pt")
    grid = unpickle(tmp_path / "grid.pt").content["grid"]
    assert grid.shape == (1, 3, 80, 80, 2) and grid[0, 2, 79, 5].tolist() == [4.0, 5.0]


# -- the container -----------------------------------------------------------------------------------------------------


def test_compressed_entries_are_refused(tmp_path: Path, guard: Path) -> None:
    """150 MB of zeros in a small file."""
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("archive/data.pkl", tensor((4,), (1,), numel=37_500_000) + b".")
        with z.open("archive/data/0", "w") as entry:
            for _ in range(150):
                entry.write(bytes(1_000_000))
    tracemalloc.reset_peak()
    with pytest.raises(UserError, match="is compressed"):
        unpickle(path)


def _claim_size(path: Path, name: bytes, size: int) -> None:
    """Rewrites an entry's sizes in the zip directory."""
    raw = bytearray(path.read_bytes())
    position = raw.rfind(name) - 46
    assert raw[position : position + 4] == b"PK\x01\x02"
    raw[position + 20 : position + 28] = struct.pack("<LL", size, size)
    path.write_bytes(raw)


def test_an_entry_that_claims_more_than_the_file(tmp_path: Path, guard: Path) -> None:
    path = write_zip(tmp_path / "claim.pt", tensor((4,), (1,), numel=1 << 28) + b".", {"0": bytes(16)})
    _claim_size(path, b"archive/data/0", 1 << 30)
    with pytest.raises(UserError, match="claim more than the"):
        unpickle(path)


def test_entries_that_overlap(tmp_path: Path, guard: Path) -> None:
    """Every entry points at the same bytes, so that a small file claims a lot."""
    path = write_zip(tmp_path / "overlap.pt", b"N.", {str(i): bytes(1000) for i in range(20)})
    for i in range(20):
        _claim_size(path, f"archive/data/{i}PK".encode() if i < 19 else b"archive/data/19PK", 20_000)
    with pytest.raises(UserError, match="claim more than the"):
        unpickle(path)


def test_encrypted_entries(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "e.pt", b"N.")
    raw = bytearray(path.read_bytes())
    raw[raw.rfind(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(raw)
    with pytest.raises(UserError, match="is encrypted"):
        unpickle(path)


def test_a_directory_of_the_large_kind_that_claims_too_much(tmp_path: Path, guard: Path) -> None:
    """The records of an archive beyond 4 GB, in a small one."""
    path = write_zip(tmp_path / "z64.pt", b"N.")
    raw = path.read_bytes()
    end = raw.rfind(b"PK\x05\x06")
    record = b"PK\x06\x06" + struct.pack("<QHHLLQQQQ", 44, 45, 45, 0, 0, 1, 1, 1 << 50, 0)
    locator = b"PK\x06\x07" + struct.pack("<LQL", 0, end, 1)
    path.write_bytes(raw[:end] + record + locator + raw[end:])
    with pytest.raises(UserError, match="zip directory of 1125899906842624 bytes"):
        unpickle(path)


@pytest.mark.parametrize("order", [b"big", b"middle", b"little" * 100_000])
def test_other_byte_orders(tmp_path: Path, order: bytes) -> None:
    with pytest.raises(UserError, match="big-endian"):
        unpickle(write_zip(tmp_path / "b.pt", b"N.", byteorder=order))
    assert unpickle(write_zip(tmp_path / "l.pt", b"N.", byteorder=b"little")).content is None


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_random_damage_to_the_container_never_escapes(tmp_path: Path, legacy: bool) -> None:
    path, rng, outcomes = tmp_path / "c.pt", np.random.default_rng(0), set()
    torch.save({"w": nn.Conv2d(3, 4, 1)}, path, _use_new_zipfile_serialization=not legacy)
    raw = path.read_bytes()
    start = 0 if legacy else raw.find(b"PK\x01\x02")
    for _ in range(300):
        changed = bytearray(raw)
        changed[rng.integers(start, len(raw))] = rng.choice([0, 48, 127, 128, 255])
        path.write_bytes(changed)
        try:
            unpickle(path)
            outcomes.add("read")
        except UserError as error:
            assert str(error).isprintable()
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


@pytest.mark.parametrize("name", ["archive/../../etc/passwd", "/etc/passwd", "archive/a\\b", "other/data.pkl"])
def test_path_tricks(tmp_path: Path, name: str) -> None:
    path = write_zip(tmp_path / "p.pt", b"N.")
    with zipfile.ZipFile(path, "a") as z:
        z.writestr(name, b"x")
    with pytest.raises(UserError, match="is not one that PyTorch writes"):
        unpickle(path)


def test_duplicate_entries(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "d.pt", b"N.")
    with zipfile.ZipFile(path, "a") as z, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        z.writestr("archive/data.pkl", b"cos\nsystem\n.")
    with pytest.raises(UserError, match="two entries are named"):
        unpickle(path)


def test_too_many_entries_and_too_large_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_zip(tmp_path / "many.pt", b"N.", {str(i): b"" for i in range(50)})
    monkeypatch.setattr(zip_directory, "MAX_ENTRIES", 40)
    with pytest.raises(UserError, match="51 entries, at most 40"):
        unpickle(path)
    monkeypatch.setattr(zip_directory, "MAX_DIRECTORY_BYTES", 1000)
    with pytest.raises(UserError, match="zip directory of"):
        unpickle(path)


def test_too_large_a_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_module, "MAX_PICKLE_BYTES", 10)
    with pytest.raises(UserError, match="larger than any checkpoint's"):
        unpickle(write_zip(tmp_path / "large.pt", b"N0" * 10 + b"N."))


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "bit.pt"
    torch.save({"w": torch.full((64,), 1.25)}, path)
    raw = path.read_bytes()
    position = raw.index(struct.pack("<f", 1.25) * 8)
    path.write_bytes(raw[:position] + b"\x01" + raw[position + 1 :])
    with pytest.raises(UserError, match="cannot be read"):
        unpickle(path)


def test_a_storage_under_two_types(tmp_path: Path) -> None:
    data = b"(" + storage("0", "FloatStorage", 4) + storage("0", "IntStorage", 4) + b"t."
    with pytest.raises(UserError, match="declared with two types"):
        unpickle(write_zip(tmp_path / "t.pt", data, {"0": bytes(16)}))


# -- files that are something else -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello, I am a text file\n", "is not a PyTorch checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc", "git lfs pull"),
        (b"<!DOCTYPE html><html>Too many users have downloaded this file", "web page"),
        (b"\n<html>", "web page"),
        (b"PK\x03\x04" + bytes(100), "cut short"),
        (pickle.dumps({"a": 1}, 2), "is not a PyTorch checkpoint"),
        (b"\xef\xbb\xbf<HTML><head>", "web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied", "error message of a web server"),
        (b'{"message": "Not Found"}', "JSON text"),
        (struct.pack("<Q", 80) + b'{"model.0.weight":{"dtype":"F16"', "safetensors file.*training's .pt file"),
        (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0", "ONNX export; give the .pt file that it was made from"),
        (b"\x89HDF\r\n\x1a\n" + bytes(8), "Keras"),
        (b"\x1c\x00\x00\x00TFL3", "TensorFlow Lite export"),
        (b"\x1f\x8b\x08", "compressed by gzip; unpack"),
        (b"\xff\xd8\xff\xe0", "JPEG picture"),
        (bytes(1000), "nothing but zeros"),
    ],
)
def test_other_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "other.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        unpickle(path)
    assert "\n" not in str(error.value) and "other.pt" in str(error.value)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_truncated_files(tmp_path: Path, share: float, legacy: bool) -> None:
    path = tmp_path / "cut.pt"
    torch.save({"w": torch.zeros(1000)}, path, _use_new_zipfile_serialization=not legacy)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(UserError, match="cut short|damaged"):
        unpickle(path)


def test_missing_file_folder_and_zip_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        unpickle(tmp_path / "none.pt")
    with pytest.raises(UserError, match="is a folder"):
        unpickle(tmp_path)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as z:
        z.writestr("docs/readme.txt", "x")
    with pytest.raises(UserError, match=r"has no data\.pkl"):
        unpickle(tmp_path / "other.zip")


@pytest.mark.parametrize(
    ("suffix", "what"), [(".onnx", "ONNX export"), (".engine", "TensorRT export"), (".yaml", "is a yaml")]
)
def test_other_suffixes(tmp_path: Path, suffix: str, what: str) -> None:
    path = tmp_path / f"other{suffix}"
    path.write_bytes(b"some bytes that say nothing")
    with pytest.raises(UserError, match=rf"{what}, not a PyTorch checkpoint; give a \.pt file"):
        unpickle(path)


def test_a_zipped_checkpoint(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.zip", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("weights/best.pt", bytes(100))
    with pytest.raises(UserError, match=r"unpack it and give 'weights/best\.pt' inside"):
        unpickle(tmp_path / "w.zip")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_zip(tmp_path / "p.pt", b"N.")

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(archive_module, "open", refuse, raising=False)
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        unpickle(path)


def test_torchscript_with_compressed_code_is_named(tmp_path: Path) -> None:
    """PyTorch compresses the code of an export."""
    path = tmp_path / "script.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("script/data.pkl", b"N.")
        z.writestr("script/code/__torch__.py", "x = 1\n" * 1000)
    with pytest.raises(UserError, match="TorchScript"):
        unpickle(path)


def test_torchscript_is_named(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "script.pt", b"N.", None, 0, **{"constants.pkl": b"N."})
    with pytest.raises(UserError, match="TorchScript"):
        unpickle(path)


def test_random_damage_never_escapes(tmp_path: Path) -> None:
    """Whatever bytes are changed: a value, or one clear error."""
    torch.save({"model": nn.Sequential(nn.Conv2d(3, 4, 1)), "x": np.array([1.0])}, tmp_path / "ok.pt")
    with zipfile.ZipFile(tmp_path / "ok.pt") as z:
        names = z.namelist()
        data = z.read(next(n for n in names if n.endswith("data.pkl")))
        storages = {n.rpartition("/")[2]: z.read(n) for n in names if "/data/" in n}
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(400):
        changed = bytearray(data)
        for position in rng.integers(0, len(data), 3):
            changed[position] = rng.integers(256)
        path = write_zip(tmp_path / "changed.pt", bytes(changed), storages)
        try:
            unpickle(path)
            outcomes.add("read")
        except UserError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}
