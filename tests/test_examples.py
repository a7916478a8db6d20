"""The examples run as they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ModelFolder
from tests.fits import with_tokenizer, write_texts

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(name: str, *arguments: object, cache: Path) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_fit_then_solve_other_budgets(model_folder: ModelFolder, tmp_path: Path) -> None:
    model = with_tokenizer(model_folder("llama", hidden_size=128, intermediate_size=256), tmp_path)
    texts, _ = write_texts(tmp_path)
    shown = run("fit_and_generate.py", model, tmp_path / "out", texts, cache=tmp_path)
    assert "bytes" in shown
    lines = run("frontier.py", tmp_path / "blockwright" / "library", cache=tmp_path).splitlines()
    losses = [float(line.split()[-1]) for line in lines]
    assert len(losses) > 3
    assert losses == sorted(losses, reverse=True)


def test_formats_and_methods_by_hand(tmp_path: Path) -> None:
    lines = run("format_by_hand.py", cache=tmp_path).splitlines()
    rtn, gptq = (float(line.split()[-1]) for line in lines)
    assert gptq < rtn


@pytest.mark.slow
def test_train_sparse(model_folder: ModelFolder, tmp_path: Path) -> None:
    model = with_tokenizer(model_folder("llama"), tmp_path)
    texts, _ = write_texts(tmp_path)
    options = ("--text", texts, "--steps", 4, "--batch-tokens", 64, "--length", 32)
    out = tmp_path / "sparse"
    shown = run("train_sparse.py", model, out, "bdwp", *options, cache=tmp_path)
    assert f"fit {out} --candidates keep,sparse2of4" in shown
    assert (out / "model.safetensors").exists()
