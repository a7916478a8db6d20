"""Our quantizer is registered exactly once, whichever import comes first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COUNT_REGISTRATIONS = """
import sys, types
loading = types.ModuleType("blockwright.loading")
quantizer = types.ModuleType("blockwright.loading.quantizer")
registered = []
def register():
    registry = sys.modules["transformers.quantizers.auto"]
    registered.append(registry.READY)
quantizer.register = register
sys.modules |= {"blockwright.loading": loading, "blockwright.loading.quantizer": quantizer}
from blockwright._transformers_hook import install
sys.meta_path[:] = [f for f in sys.meta_path if not type(f).__module__.startswith("blockwright")]
registered.clear()
"""


@pytest.fixture
def fake_transformers(tmp_path: Path) -> Path:
    """A folder with a stand-in for transformers, whose registry counts how often it ran."""
    package = tmp_path / "transformers" / "quantizers"
    package.mkdir(parents=True)
    (tmp_path / "transformers" / "__init__.py").write_text("")
    (package / "__init__.py").write_text("from .auto import READY\n")
    (package / "auto.py").write_text("RUNS = globals().get('RUNS', 0) + 1\nREADY = True\n")
    return tmp_path


def run(script: str, path: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(path)}
    done = subprocess.run(
        [sys.executable, "-c", COUNT_REGISTRATIONS + script],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_blockwright_first(fake_transformers: Path) -> None:
    script = """
install()
assert not registered and "transformers" not in sys.modules
import transformers
assert not registered
import transformers.quantizers
import transformers.quantizers.auto as auto
print(registered, auto.RUNS)
"""
    assert run(script, fake_transformers) == "[True] 1"


def test_transformers_first(fake_transformers: Path) -> None:
    script = """
import transformers.quantizers
assert not registered
install()
import transformers.quantizers.auto as auto
print(registered, auto.RUNS)
"""
    assert run(script, fake_transformers) == "[True] 1"


def test_transformers_without_its_quantizers_first(fake_transformers: Path) -> None:
    script = """
import transformers
install()
assert not registered
import transformers.quantizers
print(registered)
"""
    assert run(script, fake_transformers) == "[True]"


def test_installing_twice_registers_once(fake_transformers: Path) -> None:
    script = """
install()
install()
import transformers.quantizers
print(registered)
"""
    assert run(script, fake_transformers) == "[True]"


def test_no_trace_is_left_behind(fake_transformers: Path) -> None:
    script = """
finders = list(sys.meta_path)
install()
import transformers.quantizers.auto as auto
loader = auto.__spec__.loader
print(sys.meta_path == finders, type(loader).__name__, auto.__loader__ is loader)
"""
    assert run(script, fake_transformers) == "True SourceFileLoader True"


def test_a_registry_that_fails_to_import_is_waited_for_again(fake_transformers: Path) -> None:
    script = """
install()
sys.modules["missing_dependency"] = None
path = sys.path_importer_cache
try:
    import transformers.quantizers
except ImportError as error:
    print(error.name, registered)
del sys.modules["missing_dependency"]
sys.modules["missing_dependency"] = types.ModuleType("missing_dependency")
import transformers.quantizers
print(registered)
"""
    registry = fake_transformers / "transformers" / "quantizers" / "auto.py"
    registry.write_text("import missing_dependency\nREADY = True\n")
    assert run(script, fake_transformers).splitlines() == ["missing_dependency []", "[True]"]


def test_looking_the_module_up_does_not_use_the_registration_up(fake_transformers: Path) -> None:
    script = """
import importlib.util
install()
importlib.util.find_spec("transformers.quantizers.auto")
"""
    registry = fake_transformers / "transformers" / "quantizers"
    (registry / "__init__.py").write_text("")
    script += "assert not registered\nimport transformers.quantizers.auto\nprint(registered)\n"
    assert run(script, fake_transformers) == "[True]"


@pytest.mark.parametrize(
    "imports",
    [
        "import blockwright, transformers.modeling_utils",
        "import blockwright.loading",
    ],
)
def test_transformers_knows_the_real_quantizer(imports: str) -> None:
    script = f"""
{imports}
from transformers.quantizers import auto
print(auto.AUTO_QUANTIZER_MAPPING["blockwright"].__name__)
print(auto.AUTO_QUANTIZATION_CONFIG_MAPPING["blockwright"].__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["BlockwrightQuantizer", "BlockwrightConfig"], done.stderr
