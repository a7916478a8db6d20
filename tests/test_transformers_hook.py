"""Transformers finds our quantizer, and it is registered once, whichever import comes first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REGISTRY = """
class QuantizationConfigMixin: ...
class HfQuantizer: ...
AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING = {}, {}
def register_quantization_config(name):
    return lambda cls: AUTO_QUANTIZATION_CONFIG_MAPPING.__setitem__(name, cls)
def register_quantizer(name):
    return lambda cls: AUTO_QUANTIZER_MAPPING.__setitem__(name, cls)
def load():
    config = AUTO_QUANTIZATION_CONFIG_MAPPING["blockwright"].from_dict({"sites": 7})
    return AUTO_QUANTIZER_MAPPING["blockwright"](config, pre_quantized=True)
"""
SETUP = """
import sys, types
from blockwright._transformers_hook import install
sys.meta_path[:] = [f for f in sys.meta_path if not type(f).__module__.startswith("blockwright")]
calls = []
class Config:
    @classmethod
    def from_dict(cls, data):
        return ("config", data["sites"])
class Quantizer:
    def __init__(self, config, pre_quantized):
        self.seen = (*config, pre_quantized)
loading = sys.modules["blockwright.loading"] = types.ModuleType("blockwright.loading")
def register():
    auto = sys.modules["transformers.quantizers.auto"]
    assert "blockwright" not in auto.AUTO_QUANTIZER_MAPPING
    calls.append("register")
    auto.register_quantization_config("blockwright")(Config)
    auto.register_quantizer("blockwright")(Quantizer)
loading.register = register
def check_loading():
    from transformers.quantizers import auto
    assert not calls, "registered before it was needed"
    seen = [auto.load().seen for _ in range(2)]
    assert auto.AUTO_QUANTIZER_MAPPING["blockwright"] is Quantizer
    print(seen, calls)
"""
LOADED = "[('config', 7, True), ('config', 7, True)] ['register']"


@pytest.fixture
def fake_transformers(tmp_path: Path) -> Path:
    """A folder with a stand-in for transformers and its registry."""
    package = tmp_path / "transformers" / "quantizers"
    package.mkdir(parents=True)
    (tmp_path / "transformers" / "__init__.py").write_text("")
    (package / "__init__.py").write_text("from .auto import load\n")
    (package / "auto.py").write_text(REGISTRY)
    return tmp_path


def run(script: str, path: Path | None = None, setup: str = SETUP) -> str:
    """Stdout of a script in a fresh process."""
    paths = [*([str(path)] if path else []), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [sys.executable, "-c", setup + script],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "imports",
    [
        "install()\nassert 'transformers' not in sys.modules\nimport transformers.quantizers",
        "import transformers.quantizers\ninstall()",
        "import transformers\ninstall()\nimport transformers.quantizers",
        "install()\ninstall()\nimport transformers.quantizers\ninstall()",
    ],
    ids=["ours first", "transformers first", "transformers without quantizers first", "twice"],
)
def test_ours_is_registered_once_in_any_order(fake_transformers: Path, imports: str) -> None:
    assert run(f"{imports}\ncheck_loading()", fake_transformers) == LOADED


def test_a_quantizer_asked_for_before_a_config_is_ours_too(fake_transformers: Path) -> None:
    script = """
install()
from transformers.quantizers import auto
made = auto.AUTO_QUANTIZER_MAPPING["blockwright"](("config", 1), pre_quantized=False)
print(type(made) is Quantizer, calls)
"""
    assert run(script, fake_transformers) == "True ['register']"


def test_a_stand_in_kept_by_someone_goes_on_forwarding(fake_transformers: Path) -> None:
    script = """
install()
from transformers.quantizers import auto
kept = auto.AUTO_QUANTIZATION_CONFIG_MAPPING["blockwright"]
print(kept.from_dict({"sites": 1}), kept.from_dict({"sites": 2}), calls)
"""
    assert run(script, fake_transformers) == "('config', 1) ('config', 2) ['register']"


def test_no_trace_of_the_finder_is_left(fake_transformers: Path) -> None:
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
try:
    import transformers.quantizers
except ImportError as error:
    print(error.name)
sys.modules["missing_dependency"] = types.ModuleType("missing_dependency")
import transformers.quantizers
check_loading()
"""
    registry = fake_transformers / "transformers" / "quantizers" / "auto.py"
    registry.write_text("import missing_dependency\n" + REGISTRY)
    assert run(script, fake_transformers).splitlines() == ["missing_dependency", LOADED]


def test_looking_the_module_up_does_not_use_the_finder_up(fake_transformers: Path) -> None:
    (fake_transformers / "transformers" / "quantizers" / "__init__.py").write_text("")
    script = """
import importlib.util
install()
importlib.util.find_spec("transformers.quantizers.auto")
check_loading()
"""
    assert run(script, fake_transformers) == LOADED


@pytest.mark.parametrize(
    "first", ["blockwright", pytest.param("blockwright.loading", marks=pytest.mark.slow)]
)
def test_the_real_transformers_makes_the_real_config(first: str) -> None:
    script = f"""
import {first}
import transformers.modeling_utils
from transformers.quantizers import auto
config = auto.AutoQuantizationConfig.from_dict({{"quant_method": "blockwright", "sites": {{}}}})
print(type(config).__name__, auto.AUTO_QUANTIZER_MAPPING["blockwright"].__name__)
"""
    assert run(script, setup="") == "BlockwrightConfig BlockwrightQuantizer"
