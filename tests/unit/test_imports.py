"""The direction of imports, and the sizes of files and functions, as docs/architecture.md promises."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = {
    "utils": set(),
    "distill": set(),
    "pruning": set(),
    "models": {"utils"},
    "losses": {"utils"},
    "data": {"utils"},
    "engine": {"models", "losses", "data", "distill", "pruning", "utils"},
    "fuzz": {"engine", "models", "losses", "data", "distill", "pruning", "utils"},
}
SOURCES = sorted(p for package in ALLOWED for p in (ROOT / package).rglob("*.py")) + sorted(ROOT.glob("*.py"))


def imported_packages(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_structure(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    package = path.relative_to(ROOT).parts[0]
    if package in ALLOWED:
        wrong = (imported_packages(tree) & set(ALLOWED)) - ALLOWED[package] - {package}
        assert not wrong, f"{path.name} of {package}/ imports {sorted(wrong)}"
    else:
        assert "fuzz" not in imported_packages(tree), f"{path.name} imports the fuzzer"
    assert text.count("\n") <= 400, "a file of more than 400 lines is two things"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 60, f"{node.name} has {length} lines; a function of more than 60 is two things"
            for default in node.args.defaults + node.args.kw_defaults:
                assert not isinstance(default, ast.List | ast.Dict | ast.Set), f"{node.name} has a mutable default"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"eval", "exec"}, f"line {node.lineno} calls {node.func.id}"
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names), f"line {node.lineno} imports *"
