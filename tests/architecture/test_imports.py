"""Values flow one way: a package imports only what its row allows, and light ones stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "blockwright"

FREE = {"types", "errors", "registry", "progress"}
"""Importable from every package below."""
ALLOWED: dict[str, set[str]] = {
    "numerics": set(),
    "texts": set(),
    "plan": set(),
    "report": set(),
    "checkpoint": set(),
    "anatomy": {"checkpoint"},
    "formats": {"numerics"},
    "stream": {"checkpoint", "anatomy", "formats"},
    "tuning": {"numerics"},
    "methods": {"numerics", "tuning"},
    "capture": {"stream", "numerics"},
    "evaluate": {"stream", "numerics", "kvcache", "attention"},
    "machine": {"checkpoint", "anatomy", "formats", "stream", "kvcache", "attention"},
    "library": {"numerics"},
    "assemble": {"checkpoint", "anatomy", "formats"},
    "loading": {"checkpoint", "anatomy", "formats", "attention"},
    "refine": {"stream", "tuning"},
    "heal": {"checkpoint", "formats", "stream", "tuning"},
    "attention": {"numerics"},
    "kvcache": {"numerics"},
    "training": {"anatomy", "checkpoint", "numerics", "stream", "texts", "tuning"},
}
SPECIAL: dict[str, set[str]] = {
    "errors": set(),
    "progress": set(),
    "types": {"errors"},
    "registry": {"types", "errors", "formats", "methods", "attention", "heal", "training"},
    "_transformers_hook": {"loading"},
    "__init__": {"api", "fitting", "types", "_transformers_hook"},
    "fitting": {"pipeline", "types", "progress"},
    "__main__": {"cli"},
}
"""Rows that are exact: nothing is free for them."""
HARMLESS = {"blockwright", "blockwright.__version__"}
"""``import blockwright`` alone only makes transformers know our folders."""
EVERYTHING = {"pipeline", "cli", "api"}
NO_TORCH = [
    "blockwright",
    "blockwright.types",
    "blockwright.errors",
    "blockwright.progress",
    "blockwright.plan",
    "blockwright.report",
    "blockwright.texts",
    "blockwright.cli",
    "blockwright.fitting",
]


def source_files() -> list[Path]:
    return [f for f in sorted(SOURCE.rglob("*.py")) if f.relative_to(SOURCE).parts[0] != "bundled"]


def module_name(file: Path) -> str:
    parts = ["blockwright", *file.relative_to(SOURCE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST, file: Path) -> Iterator[str]:
    """Full names of everything a file imports, ``from package import name`` as ``package.name``."""
    package = module_name(file).split(".")
    package = package if file.name == "__init__.py" else package[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def own_part(name: str) -> str:
    """The package, or top-level file, that a full name of ours belongs to."""
    part = f"{name}.__init__".split(".")[1]
    exists = (SOURCE / part).is_dir() or (SOURCE / f"{part}.py").is_file()
    return part if exists else "__init__"


def edges(file: Path) -> set[tuple[str, str]]:
    found = {
        own_part(name)
        for name in imported(ast.parse(file.read_text(encoding="utf-8")), file)
        if name.split(".")[0] == "blockwright" and name not in HARMLESS
    }
    part = own_part(module_name(file))
    return {(part, other) for other in found if other != part}


def forbidden(part: str, other: str) -> bool:
    if part in EVERYTHING:
        return False
    allowed = SPECIAL[part] if part in SPECIAL else ALLOWED[part] | FREE
    return other not in allowed


@pytest.mark.parametrize("file", source_files(), ids=lambda file: str(file.relative_to(SOURCE)))
def test_imports_follow_the_table(file: Path) -> None:
    wrong = sorted(f"{a} -> {b}" for a, b in edges(file) if forbidden(a, b))
    assert not wrong, f"{module_name(file)} must not import {wrong}; see CONTRIBUTING.md"


def test_every_package_has_a_row() -> None:
    folders = {f.parent.relative_to(SOURCE).parts[0] for f in source_files() if f.parent != SOURCE}
    assert folders - set(ALLOWED) - set(SPECIAL) - EVERYTHING == set()


def test_the_table_has_no_cycle() -> None:
    remaining = dict(ALLOWED)
    while remaining:
        leaves = {part for part, below in remaining.items() if not below & set(remaining)}
        assert leaves, f"cycle among {sorted(remaining)}"
        remaining = {part: below for part, below in remaining.items() if part not in leaves}


@pytest.mark.parametrize(
    "file", sorted((SOURCE / "methods").rglob("[!_]*.py")), ids=lambda file: file.stem
)
def test_a_method_knows_no_other_method_and_no_format(file: Path) -> None:
    for name in imported(ast.parse(file.read_text(encoding="utf-8")), file):
        parts = name.split(".")
        if parts[:2] == ["blockwright", "methods"]:
            shared = any(part.startswith("_") for part in parts[2:])
            assert shared, f"{file.name} imports {name}: shared code goes to numerics or a _file"
        assert parts[:2] != ["blockwright", "formats"], f"{file.name}: formats are handed in"


def test_a_reader_of_imports_sees_every_spelling() -> None:
    code = """
import blockwright.stream.tap
from blockwright import plan
from blockwright.formats import _linear
from ..numerics import losses
from . import rtn
def later():
    from blockwright.cli import app
"""
    file = SOURCE / "methods" / "quantize" / "made_up.py"
    names = set(imported(ast.parse(code), file))
    assert names == {
        "blockwright.stream.tap",
        "blockwright.plan",
        "blockwright.formats._linear",
        "blockwright.methods.numerics.losses",
        "blockwright.methods.quantize.rtn",
        "blockwright.cli.app",
    }


@pytest.mark.parametrize("module", NO_TORCH)
def test_no_torch_is_loaded(module: str) -> None:
    path = SOURCE.joinpath(*module.split(".")[1:])
    if not path.is_dir() and not path.with_suffix(".py").is_file():
        pytest.skip(f"{module} does not exist yet")
    script = (
        f"import sys, {module}; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_importing_blockwright_is_fast() -> None:
    script = (
        "import time; t = time.process_time(); import blockwright; print(time.process_time() - t)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        for _ in range(3)
    ]
    assert min(float(run.stdout) for run in runs) < 0.3
