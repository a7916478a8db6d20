"""A model whose bytes exceed the memory that the process may use is fitted all the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks.memory import promised_bytes

from blockwright.anatomy import build_skeleton
from tests.fits import tiny_tokenizer, write_texts
from tests.models import tiny_model


@pytest.mark.slow
def test_a_model_larger_than_the_memory_it_may_use_is_fitted(tmp_path: Path) -> None:
    """The limit counts private memory, touched or not (RLIMIT_DATA): what is promised, no more.  It
    counts the folder twice while that is loaded: mapped by transformers, and packed for kernels.
    """
    model = tiny_model(
        "llama",
        tmp_path / "model",
        dtype=torch.bfloat16,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=96,
    )
    tiny_tokenizer().save_pretrained(model)
    texts, heldout = write_texts(tmp_path)
    original = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    allowed = promised_bytes(build_skeleton(model))
    assert original > 1.2 * allowed
    command = [sys.executable, "-m", "blockwright", "fit", str(model), "--bits", "3.3"]
    command += ["--candidates", "int3-g128:rtn,int8:rtn", "--preset", "fast", "--no-speed"]
    command += ["--calibration", str(texts), "--eval-text", str(heldout), "--threads", "1"]
    command += ["--calibration-tokens", "512", "--eval-tokens", "256", "--sequence-length", "64"]
    command += ["--out", str(tmp_path / "out"), "--library", str(tmp_path / "library"), "--json"]
    limited = ["sh", "-c", f'ulimit -d {allowed // 1024}; exec "$@"', "sh", *command]
    done = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["original_size_bytes"] == original
    assert result["peak_rss_bytes"] < allowed
