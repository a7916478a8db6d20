"""What only a freshly loaded model can tell: that the folder loads, how fast it runs, what it
holds.

Each question is asked of a new process that loads the folder as a user would, offline.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from blockwright.errors import ModelError
from blockwright.types import Speed

CHILD = "blockwright.evaluate.loaded"


def loaded_logits(
    folder: Path, inputs: Tensor, *, input_name: str, task: str, trust_remote_code: bool = False
) -> Tensor:
    """Logits (or last hidden states) of the folder loaded by transformers in fp32; fp32 [B, T,
    ...].
    """
    with tempfile.TemporaryDirectory() as scratch:
        given, answer = Path(scratch) / "inputs.safetensors", Path(scratch) / "outputs.safetensors"
        save_file({"inputs": inputs.contiguous()}, given)
        _run(
            {
                "question": "logits",
                "folder": str(folder),
                "task": task,
                "input_name": input_name,
                "inputs": str(given),
                "outputs": str(answer),
                "trust_remote_code": trust_remote_code,
            }
        )
        outputs: Tensor = load_file(answer)["outputs"]
        return outputs


def measure_speed(
    folder: Path,
    ids: Tensor,
    *,
    task: str,
    decode_tokens: int = 32,
    device: str = "cpu",
    trust_remote_code: bool = False,
) -> Speed:
    """Prefill of ``ids`` [T], decoding after it (batch 1, stored dtype), and resident memory."""
    answer = _run(
        {
            "question": "speed",
            "folder": str(folder),
            "task": task,
            "ids": ids.tolist(),
            "decode_tokens": decode_tokens,
            "device": device,
            "trust_remote_code": trust_remote_code,
        }
    )
    return Speed(**answer)


def _run(request: dict[str, Any]) -> dict[str, Any]:
    """Ask a new process; raises ``ModelError`` with its last line when it fails."""
    request["threads"] = torch.get_num_threads()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(
        [sys.executable, "-m", CHILD],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ModelError(f"{request['folder']} does not load in a fresh process: {last}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer
