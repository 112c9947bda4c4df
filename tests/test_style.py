"""Limits that keep the code readable, and calls that it must not make."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from conftest import ROOT

FILE_LINES, FUNCTION_LINES = 400, 60
PACKAGES = ("ablate", "analysis")
FOLDERS = (*PACKAGES, "benchmarks", "docs", "experiments", "tests", ".ci")
TEXT = {".py", ".md", ".yaml", ".toml", ".txt", ".j2", ".json"}
UNSAFE = {"pickle.load", "pickle.loads", "pickle.Unpickler", "yaml.load", "yaml.unsafe_load", "eval", "exec"}


def code(*folders: str) -> Iterator[tuple[str, ast.Module]]:
    """Every Python file of some folders: its name and its tree."""
    for folder in folders:
        for file in sorted((ROOT / folder).rglob("*.py")):
            yield str(file.relative_to(ROOT)), ast.parse(file.read_text())


def texts() -> Iterator[Path]:
    """Everything that people read or a program reads, but for what git ignores."""
    folders = (ROOT / name for name in FOLDERS)
    places = (ROOT.glob("*"), ROOT.glob("results/*.md"), *(folder.rglob("*") for folder in folders))
    for file in (file for place in places for file in place if file.is_file()):
        if file.suffix in TEXT or file.name in ("Makefile", "run"):
            yield file


def test_there_is_code_to_look_at() -> None:
    assert len(list(code(*PACKAGES))) > 60 and len(list(texts())) > 90


def test_files_are_short() -> None:
    lengths = {name: len((ROOT / name).read_text().splitlines()) for name, _ in code(*PACKAGES)}
    assert {name: lines for name, lines in lengths.items() if lines > FILE_LINES} == {}


def test_functions_are_short() -> None:
    lengths = {
        f"{name}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
        for name, tree in code(*PACKAGES)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert len(lengths) > 300
    assert {name: lines for name, lines in lengths.items() if lines > FUNCTION_LINES} == {}


def test_modules_classes_and_functions_say_what_they_are_for() -> None:
    """All modules that are not empty, all public classes, and all public functions of the analysis."""
    silent = [name for name, tree in code(*PACKAGES) if tree.body and not ast.get_docstring(tree)]
    for name, tree in code(*PACKAGES):
        kinds = (ast.ClassDef, ast.FunctionDef) if name.startswith("analysis") else (ast.ClassDef,)
        public = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
        silent += [f"{name}:{node.lineno} {node.name}" for node in public if not ast.get_docstring(node)]
    assert silent == []


def test_no_module_is_a_drawer() -> None:
    drawers = {"utils", "util", "common", "helpers", "misc"}
    assert [name for name, _ in code(*PACKAGES) if Path(name).stem in drawers] == []


def test_errors_are_caught_by_name() -> None:
    bare = [
        f"{name}:{node.lineno}"
        for name, tree in code(*PACKAGES, "tests", "benchmarks")
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]
    assert bare == []


def test_nothing_is_loaded_that_could_run_code() -> None:
    """A checkpoint or a grid from elsewhere is data: `weights_only=True` is said, whatever torch's default is."""
    found = []
    for name, tree in code(*PACKAGES, "benchmarks"):
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            called, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            if called in UNSAFE or (called == "torch.load" and given.get("weights_only") != "True"):
                found.append(f"{name}:{node.lineno} {called}")
    assert found == []


def test_no_loose_ends() -> None:
    words = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b")
    assert [str(file) for file in texts() if words.search(file.read_text())] == []


def test_no_paths_of_a_machine() -> None:
    path = re.compile(r"(?<![\w.:~<>/}])/(?:work|farm|root|home|Users|mnt|opt)/\w+")
    found = {str(file): path.findall(file.read_text()) for file in texts()}
    assert {name: paths for name, paths in found.items() if paths} == {}
