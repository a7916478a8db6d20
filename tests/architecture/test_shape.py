"""Files and functions stay readable, and names say something."""

from __future__ import annotations

import ast
import re
import subprocess
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "blockwright"
FILE_LINES, FUNCTION_LINES = 250, 30
"""Lengths to aim at; twice as long fails."""
EMPTY_WORDS = {
    *("util", "utils", "helper", "helpers", "misc", "common", "manager", "handler"),
    *("base2", "v2", "tmp", "stuff"),
}
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
MACHINE_PATH = re.compile(r"(?<![\w.~>-])/(?:home|root|work|Users|mnt)/[\w.-]+")


def python_files() -> list[Path]:
    folders = [SOURCE, ROOT / "tests", ROOT / "scripts", ROOT / "benchmarks", ROOT / "examples"]
    return sorted(file for folder in folders for file in folder.rglob("*.py"))


def written_files() -> list[Path]:
    """Text files that git tracks or would track."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    suffixes = {".py", ".md", ".toml", ".txt", ".cfg", ".yml", ".yaml", ""}
    files = [ROOT / name for name in listed.stdout.splitlines()]
    return [f for f in files if f.suffix in suffixes and f.is_file() and "bundled" not in f.parts]


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def definitions(file: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of the body; docstring and parameters are no code."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (function.end_lineno or 0) - body[0].lineno + 1 if body else 0


def too_long(aim: int, factor: float) -> list[str]:
    return [
        f"{name_of(file)}: {node.name} has {code_lines(node)} lines"
        for file in python_files()
        for node in definitions(file)
        if not isinstance(node, ast.ClassDef) and code_lines(node) > factor * aim
    ]


def test_functions_are_short() -> None:
    assert too_long(FUNCTION_LINES, 2) == []


def test_files_are_short() -> None:
    lengths = {
        name_of(file): len(file.read_text(encoding="utf-8").splitlines()) for file in python_files()
    }
    assert {name: n for name, n in lengths.items() if n > 2 * FILE_LINES} == {}


def test_what_is_longer_than_aimed_at_is_reported() -> None:
    found = too_long(FUNCTION_LINES, 1.34)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        if found:
            warnings.warn("longer than aimed at: " + "; ".join(found), stacklevel=1)


@pytest.mark.parametrize("file", python_files(), ids=name_of)
def test_names_say_something(file: Path) -> None:
    names = [file.stem, file.parent.name, *(node.name for node in definitions(file))]
    words = {word for name in names for word in re.split(r"_|(?<=[a-z])(?=[A-Z])", name)}
    assert {word.lower() for word in words} & EMPTY_WORDS == set()


def test_nothing_is_left_unfinished() -> None:
    own = Path(__file__)
    found = [
        f"{name_of(file)}:{number}"
        for file in written_files()
        if file != own
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if UNFINISHED.search(line)
    ]
    assert found == []


def test_no_path_of_a_machine_is_written_down() -> None:
    found = [
        f"{name_of(file)}:{number}: {path[0]}"
        for file in written_files()
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if (path := MACHINE_PATH.search(line))
    ]
    assert found == []


def test_errors_are_not_swallowed() -> None:
    """``except Exception: pass`` and bare ``except`` hide what went wrong."""
    found = []
    for file in python_files():
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.ExceptHandler):
                broad = node.type is None or ast.unparse(node.type) in {
                    "Exception",
                    "BaseException",
                }
                silent = all(isinstance(inner, ast.Pass) for inner in node.body)
                if broad and (silent or node.type is None):
                    found.append(f"{name_of(file)}:{node.lineno}")
    assert found == []
