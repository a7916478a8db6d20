"""An installed wheel has everything: command, model and texts, the report's page, licences."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUNDLED = ("model/model.safetensors", "model/tokenizer.json", "model/config.json")
TEXTS = ("calibration", "selection", "heldout")

pytestmark = pytest.mark.slow


def run(*command: object, cwd: Path) -> str:
    """What a command prints; the checkout is not on its path."""
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` folder of an environment with the wheel; its dependencies are this one's."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel, cwd=folder)
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return folder / "bin"


def test_the_wheel_holds_model_texts_and_licences_and_no_test(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    wanted = [f"blockwright/bundled/{name}" for name in BUNDLED]
    wanted += [f"blockwright/bundled/texts/{name}.jsonl" for name in TEXTS]
    wanted += [f"blockwright/report/templates/page.{kind}" for kind in ("html", "css", "js")]
    wanted += ["blockwright/numerics/int4_avx512.cpp"]
    assert set(wanted) <= set(names)
    assert "blockwright/py.typed" in names
    licences = [name for name in names if ".dist-info/licenses/" in name]
    assert any(name.endswith("/LICENSE") for name in licences)
    assert any(name.endswith("LICENSE-PYTHON.txt") for name in licences)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"blockwright"}


def test_the_command_runs_and_finds_the_bundled_model(installed: Path, tmp_path: Path) -> None:
    assert run(installed / "blockwright", "--version", cwd=tmp_path).startswith("blockwright ")
    where = "import blockwright.cli.demo as demo; print(demo.bundled_model())"
    model = Path(run(installed / "python", "-c", where, cwd=tmp_path).strip())
    assert installed.parent in model.parents
    found = json.loads(run(installed / "blockwright", "inspect", model, "--json", cwd=tmp_path))
    assert found["blocks"] >= 6


def test_the_demo_opens_model_and_texts(installed: Path, tmp_path: Path) -> None:
    priced = run(installed / "blockwright", "demo", "--dry-run", "--json", cwd=tmp_path)
    assert json.loads(priced)["memory_bytes"] > 0
