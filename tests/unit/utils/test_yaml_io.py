"""utils.yaml_io: what a yaml file may mean, in which encodings, and what it costs to refuse one."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from data.config import load_class_names, load_dataset_config
from engine.config.hyp import read_hyp
from models.config import read_model_config
from tests.golden import ROOT
from utils.errors import UserError
from utils.yaml_io import MAX_BYTES, load_yaml
from utils.yaml_values import MAX_VALUES


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "file.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        load_yaml(path)
    text = str(error.value)
    assert "\n" not in text and text.isprintable() and len(text) < 400 + len(str(path))
    return text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_utf8_and_whatever_has_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    assert load_yaml(write(tmp_path, "names: [红色, grün]\n".encode(encoding))) == {"names": ["红色", "grün"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: 1\nnames: [红色, 绿色]\n".encode("gbk"), "is not UTF-8 (line 2: byte 0xba); save it as UTF-8"),
        ("# é\n".encode("latin-1"), "is not UTF-8 (line 1: byte 0xe9)"),
        ("a: 1\n".encode("utf-16-le"), "is not UTF-8 text, so not valid yaml (it has zero bytes, as UTF-16 has)"),
        (b"\xff\xfea", "begins as UTF-16 and is not"),
    ],
)
def test_another_encoding_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    assert message in refusal(write(tmp_path, content))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr0: 0.01\nb: 2\nlr0: 0.5\n", "line 3, column 1: the key 'lr0' stands in line 1 and again in line 3"),
        ("a: {b: 1, c: 2, b: 1}\n", "the key 'b' stands in line 1 and again in line 1"),
        ("a: &x [*x]\n", "the alias *x stands inside what it names"),
        ("a: *x\n", "the alias *x has no anchor before it"),
        ("a: " + "9" * 400, "a number of 400 digits"),
        ("a: !!python/object:os.system b", "the tag 'tag:yaml.org,2002:python/object:os.system' has no meaning here"),
        ("[a, b]: c", "a key must be text"),
        ("a: 1\n---\nb: 2\n", "a second document begins"),
        ("b: 2\na: \x07\n", "line 2: special characters are not allowed"),
        ("a: " + "[" * 100 + "]" * 100, "nested more than"),
        ("a: b: c\n", "line 1, column 5"),
        ("a: [1", "line 1"),
    ],
)
def test_what_has_no_one_meaning_is_refused(tmp_path: Path, text: str, message: str) -> None:
    assert message in refusal(write(tmp_path, text))


def test_scalars_mean_what_they_look_like(tmp_path: Path) -> None:
    text = "a: [1:30, 010, 1_000, 2024-01-01, 0o10, 1e3, =]\nb: [7, -7, 0x1F, 1.5, .5, 1.0e-3, .inf, true, off, null]\n"
    content = load_yaml(write(tmp_path, text + "on: 1\n2: x\nc: '5'\n"))
    assert content["a"] == ["1:30", "010", "1_000", "2024-01-01", "0o10", "1e3", "="]
    assert content["b"] == [7, -7, 31, 1.5, 0.5, 0.001, float("inf"), True, False, None]
    assert (content["on"], content["2"], content["c"]) == (1, "x", "5"), "keys are text"


def test_text_is_kept_where_text_is_expected(tmp_path: Path) -> None:
    path = write(tmp_path, "names: [no, yes, on, 010, 1:30, 2024-01-01, 1.50, null]\nother: [no]\n")
    content = load_yaml(path, texts=("names",))
    assert content == {"names": ["no", "yes", "on", "010", "1:30", "2024-01-01", "1.50", None], "other": [False]}


def test_anchors_and_merges_still_work(tmp_path: Path) -> None:
    text = "base: &base {a: 1, b: 2}\nlist: &list [1, 2]\nchild: {<<: *base, b: 3}\nagain: *list\n"
    content = load_yaml(write(tmp_path, text))
    assert content["child"] == {"a": 1, "b": 3} and content["again"] == [1, 2]


def test_a_sexagesimal_number_is_not_read_as_seconds(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lr0 must be a number, found '1:30'"):
        read_hyp(write(tmp_path, "lr0: 1:30\n"))


def bomb(key: str, levels: int = 8) -> str:
    """A value of 10^(levels + 1) leaves in some 400 bytes."""
    text = "&b0 [x,x,x,x,x,x,x,x,x,x]"
    for level in range(1, levels + 1):
        text = f"&b{level} [{text},{','.join([f'*b{level - 1}'] * 9)}]"
    return f"{key}: {text}\n"


@pytest.mark.parametrize(
    "text",
    [
        bomb("lr0"),
        "b0: &b0 {x: 1, y: 2}\n"
        + "".join(f"b{i}: &b{i} {{k: [{','.join([f'*b{i - 1}'] * 9)}]}}\n" for i in range(1, 9)),
        "a: &a {x: 1}\n" + "".join(f"b{i}: &a {{<<: [{','.join(['*a'] * 30)}], k{i}: *a}}\n" for i in range(40)),
        "a: 1\n" + "#" * MAX_BYTES,
        "k: " + "- " * 100_000,
        "k: " + "{a: " * 100_000,
    ],
    ids=["lists", "mappings", "merges", "bytes", "dashes", "nesting"],
)
def test_a_bomb_is_one_short_line(tmp_path: Path, text: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in (load_yaml, read_hyp, load_dataset_config, load_class_names, read_model_config):
        with pytest.raises(UserError) as error:
            read(write(tmp_path, text))
        assert len(str(error.value)) < 500 and "\n" not in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 << 10, "kB"


def test_a_list_without_end_is_refused(tmp_path: Path) -> None:
    assert f"more than {MAX_VALUES} values" in refusal(write(tmp_path, "names: [" + "a," * (MAX_VALUES + 1) + "]"))


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "link.yaml").symlink_to("gone.yaml")
    assert "is a device or a pipe" in refusal(tmp_path / "pipe.yaml")
    assert "is a device or a pipe" in refusal(Path("/dev/zero"))
    assert "is a link to 'gone.yaml', which does not exist" in refusal(tmp_path / "link.yaml")
    assert "File name too long" in refusal(tmp_path / ("x" * 300))
    assert "is a folder" in refusal(tmp_path)


def test_any_bytes_end_in_one_line() -> None:
    """Mutations of real files, in a process whose memory is bounded."""
    code = (
        "import random, resource, sys, tempfile, pathlib\n"
        "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "from utils.errors import UserError\n"
        "from data.config import load_dataset_config\n"
        "from engine.config.hyp import read_hyp\n"
        "from models.config import read_model_config\n"
        "stream, path = random.Random(0), pathlib.Path(tempfile.mkdtemp()) / 'x.yaml'\n"
        "seeds = [pathlib.Path(p).read_bytes() for p in sys.argv[1:]]\n"
        "parts = [b'[', b'{', b'&a ', b'*a', b'<<: ', b': ', b'- ', b'!!x ', b'1:30',"
        " b'\\xff', b'\\0', b'\"', b'9' * 50, b'\\n']\n"
        "for _ in range(150):\n"
        "    data = bytearray(stream.choice(seeds)[:2000])\n"
        "    for _ in range(stream.randint(1, 8)):\n"
        "        place = stream.randrange(len(data))\n"
        "        data[place:place + stream.randint(0, 9)] = stream.choice(parts) * stream.randint(1, 3)\n"
        "    path.write_bytes(data)\n"
        "    for read in (read_hyp, load_dataset_config, read_model_config):\n"
        "        try: read(path)\n"
        "        except UserError as error: assert len(str(error)) < 1000 and str(error).isprintable(), str(error)\n"
    )
    seeds = ["hyp/distill.fgd.yaml", "data/bccd.yaml", "cfg/yolov5/yolov5n.yaml"]
    done = subprocess.run([sys.executable, "-c", code, *seeds], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
