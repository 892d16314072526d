"""The structure that docs/architecture.md promises: who imports whom, no circles, sizes of files and functions."""

from __future__ import annotations

import ast
import functools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "utils": set(),
    "distill": set(),
    "pruning": set(),
    "models": {"utils"},
    "losses": {"utils"},
    "data": {"utils"},
    "checkpoints": {"models", "utils"},
    "engine": {"checkpoints", "models", "losses", "data", "distill", "pruning", "utils"},
}
# The rooms of engine/, lowest first: each may import the rooms of the lines before it, and nothing else of engine/.
FLOORS = (
    ("config", "runfolder"),
    ("inference",),
    ("reporting",),
    ("distilling",),
    ("training",),
    ("exporting", "comparing", "pruning_run", "chains"),
)
# What a file may not import although its package may.
FORBIDDEN = {"engine/training/loop.py": ("distill", "pruning", "engine.distilling")}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_MODULES = 18
LISTS = ("distill/losses", "models/blocks/extra")  # rooms that are lists, and may be longer

SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")) + sorted(ROOT.glob("*.py"))
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in SOURCES}


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(module: str) -> Iterator[str]:
    """Modules of ours that a module imports: anywhere in it, also inside functions and for type checking only."""
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                if full in MODULES or base in MODULES:
                    yield full if full in MODULES else base


GRAPH = {module: sorted(set(imports(module)) - {module}) for module in MODULES}


def circles() -> list[list[str]]:
    """Groups of modules that import each other, directly or by way of others (Tarjan's algorithm)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        number[module] = lowest[module] = len(number)
        stack.append(module)
        for other in GRAPH[module]:
            if other not in number:
                visit(other)
            if other in stack:
                lowest[module] = min(lowest[module], lowest[other])
        if lowest[module] == number[module]:
            place = stack.index(module)
            group = stack[place:]
            del stack[place:]
            if len(group) > 1:
                found.append(sorted(group))

    for module in GRAPH:
        if module not in number:
            visit(module)
    return found


def room(module: str) -> str:
    """The room of engine/ that a module lies in."""
    return module.split(".")[1] if module.count(".") else ""


def long_functions(path: Path) -> list[str]:
    """Functions of a file that are longer than they may be, with their lengths."""
    functions = [n for n in ast.walk(parsed(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = [(node.name, (node.end_lineno or node.lineno) - node.lineno + 1) for node in functions]
    return [f"{path.relative_to(ROOT)}: {name} ({length})" for name, length in lengths if length > MAX_FUNCTION_LINES]


def lines(path: Path) -> int:
    return path.read_text(encoding="utf-8").count("\n")


def modules_by_folder() -> Counter[str]:
    folders = (path.parent.relative_to(ROOT).as_posix() for path in SOURCES if path.name != "__init__.py")
    return Counter(folder for folder in folders if folder != ".")


@pytest.mark.parametrize("module", [m for m in MODULES if m.split(".")[0] in PACKAGES])
def test_a_module_imports_only_what_its_package_may(module: str) -> None:
    package = module.split(".")[0]
    others = {other.split(".")[0] for other in GRAPH[module]} & set(PACKAGES)
    wrong = others - PACKAGES[package] - {package}
    assert not wrong, f"{module} imports {sorted(wrong)}"
    scripts = [other for other in GRAPH[module] if other.split(".")[0] not in PACKAGES]
    assert not scripts, f"{module} imports the command line {scripts}"


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("engine.")])
def test_a_room_of_the_engine_imports_only_rooms_before_it(module: str) -> None:
    floor_of = {name: floor for floor, names in enumerate(FLOORS) for name in names}
    if MODULES[module] == ROOT / "engine/checkpoint.py":
        return  # the old name of a command; test_old_command_names looks after it
    assert room(module) in floor_of, f"{module} lies in no room of the table"
    for other in GRAPH[module]:
        if other.startswith("engine.") and room(other) != room(module):
            assert floor_of[room(other)] < floor_of[room(module)], f"{module} imports {other}"


@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_module_that_must_not_know_of_others(name: str) -> None:
    module = name.removesuffix(".py").replace("/", ".")
    wrong = [o for o in GRAPH[module] for ban in FORBIDDEN[name] if o == ban or o.startswith(f"{ban}.")]
    assert not wrong, f"{name} imports {wrong}"


def test_no_circles() -> None:
    assert not circles()


def test_every_folder_says_what_lives_there() -> None:
    folders = {path.parent for path in SOURCES if path.parent != ROOT}
    silent = [str(f.relative_to(ROOT)) for f in sorted(folders) if not ast.get_docstring(parsed(f / "__init__.py"))]
    assert not silent, f"no docstring in the __init__.py of {silent}"


def test_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    """Prints the measures of the house; no file, function or folder is larger than it may be."""
    folders = modules_by_folder()
    long_files = [f"{p.relative_to(ROOT)} ({lines(p)})" for p in SOURCES if lines(p) > MAX_FILE_LINES]
    functions = [line for path in SOURCES for line in long_functions(path)]
    crowded = {name: count for name, count in folders.items() if count > MAX_MODULES and name not in LISTS}
    largest = folders.most_common(1)[0]
    with capsys.disabled():
        print(
            f"\ncircles: {len(circles())}; largest room: {largest[0]}/ with {largest[1]} modules; files over "
            f"{MAX_FILE_LINES} lines: {len(long_files)}; functions over {MAX_FUNCTION_LINES} lines: {len(functions)}"
        )
    assert not long_files, "a file this long is two things"
    assert not functions, "a function this long is two things"
    assert not crowded, "a folder of so many modules is several rooms"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_what_no_file_may_contain(path: Path) -> None:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for default in node.args.defaults + node.args.kw_defaults:
                assert not isinstance(default, ast.List | ast.Dict | ast.Set), f"{node.name} has a mutable default"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"eval", "exec"}, f"line {node.lineno} calls {node.func.id}"
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names), f"line {node.lineno} imports *"


FAMILY_NAMES = {"yolov5", "yolov7", "yolov8", "mobile"}
# Where a family may be asked for by its name: the table of families, the readers and writers of files that name it, and
# the table of default hyper-parameters.
FAMILY_TABLES = ("models/", "checkpoints/upstream/", "checkpoints/exported.py", "engine/config/defaults.py")


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_nobody_asks_for_a_family_or_the_class_of_a_head(path: Path) -> None:
    """Families are rows of a table and heads describe themselves, so that a new one changes nothing else."""
    name = path.relative_to(ROOT).as_posix()
    if name.startswith(FAMILY_TABLES):
        return
    named = [n.value for n in ast.walk(parsed(path)) if isinstance(n, ast.Constant) and n.value in FAMILY_NAMES]
    assert not named, f"{named}: a field of models.families.Family or of the head says it"
    module = name.removesuffix(".py").replace("/", ".")
    heads = [o for o in GRAPH.get(module, []) if o.startswith("models.heads.") and o != "models.heads.base"]
    assert not heads, f"{heads}: models.heads.base.DetectionHead says what there is to ask"


def everything_imported_by(script: str) -> set[str]:
    """All modules of ours that a command line may come to import."""
    seen: set[str] = set()
    waiting = [script]
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += GRAPH[module]
    return seen


@pytest.mark.parametrize(
    ("script", "strangers"),
    [
        ("detect", ("engine.training", "engine.distilling", "losses", "distill", "data.augmentation", "data.loader")),
        ("export", ("engine.training", "engine.distilling", "losses", "distill", "data.augmentation", "data.loader")),
        ("test", ("engine.training", "engine.distilling", "losses", "distill")),
    ],
)
def test_what_uses_a_model_does_without_the_training(script: str, strangers: tuple[str, ...]) -> None:
    met = everything_imported_by(script)
    assert not [m for m in met for stranger in strangers if m == stranger or m.startswith(f"{stranger}.")]


def defined_names(tree: ast.Module) -> Iterator[str]:
    """Functions, classes and constants at the level of a module."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def test_no_name_lives_for_tests_only() -> None:
    others = [path for folder in ("benchmarks", "examples", "fuzz") for path in (ROOT / folder).rglob("*.py")]
    words = Counter(word for path in (*SOURCES, *others) for word in re.findall(r"\w+", path.read_text("utf-8")))
    unused = [f"{path.relative_to(ROOT)}: {name}" for path in SOURCES for name in defined_names(parsed(path))
              if words[name] == 1 and not name.startswith("__")]  # fmt: skip
    assert not unused
