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
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from blockwright.errors import ModelError, OutputError
from blockwright.types import Speed

CHILD = "blockwright.evaluate.loaded"


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How a folder is loaded in the fresh process."""

    folder: Path
    task: str
    device: str = "cpu"
    trust_remote_code: bool = False
    kv: str | None = None
    """Format of the KV cache; None: as the folder says."""
    attention: str | None = None
    """Attention policy of every block, ``keep`` for the model's own; None: as the folder says."""


@dataclass(frozen=True)
class Answers:
    """What the fresh process found."""

    speed: Speed | None
    outputs: Tensor | None
    """Logits or last hidden states [B, T, ...], computed in fp32."""


def ask_fresh_process(
    loading: Loading,
    *,
    speed_ids: Tensor | None = None,
    decode_tokens: int = 32,
    inputs: Tensor | None = None,
    input_name: str = "input_ids",
) -> Answers:
    """Load the folder in a new process and answer what is asked.

    ``speed_ids`` [T]: time prefill of these and decoding after them (batch 1, stored dtype).
    ``inputs`` [B, T]: compute outputs.  Raises ``ModelError`` when the folder does not load.
    """
    with tempfile.TemporaryDirectory() as scratch:
        given, answer = Path(scratch) / "inputs.safetensors", Path(scratch) / "outputs.safetensors"
        if inputs is not None:
            _write_inputs(inputs, given)
        speed = _run(
            {
                **asdict(loading),
                "folder": str(loading.folder),
                "ids": speed_ids.tolist() if speed_ids is not None else [],
                "decode_tokens": decode_tokens,
                "input_name": input_name,
                "inputs": str(given) if inputs is not None else "",
                "outputs": str(answer),
            }
        )
        outputs = load_file(answer)["outputs"] if inputs is not None else None
    return Answers(Speed(**speed) if speed else None, outputs)


def _write_inputs(inputs: Tensor, target: Path) -> None:
    try:
        save_file({"inputs": inputs.contiguous()}, target)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"cannot write {target}: {error}; free space there, or set TMPDIR to another folder"
        ) from None


def _run(request: dict[str, Any]) -> dict[str, Any]:
    """Ask a new process; raises ``ModelError`` with its last line when it fails."""
    failed = f"{request['folder']} does not load in a fresh process"
    *_, answer = answers_of(CHILD, request, failed)
    return answer


def answers_of(child: str, request: dict[str, Any], failed: str) -> Iterator[dict[str, Any]]:
    """Run a module in a new process, offline, and yield each JSON line that it prints.

    It gets ``request`` on stdin.  Raises ``ModelError``, ``failed`` and its last line, when it
    fails; it never outlives the caller's interest.
    """
    request["threads"] = torch.get_num_threads()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", child],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        )
        try:
            yield from _conversation(process, request)
        finally:
            process.kill()
            code = process.wait()
        if code != 0:
            errors.seek(0)
            last = (errors.read().strip().splitlines() or [f"it ended with code {code}"])[-1]
            raise ModelError(f"{failed}: {last}")


def _conversation(
    process: subprocess.Popen[str], request: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("a fresh process has no pipes")
    with process.stdout:
        with suppress(BrokenPipeError), process.stdin:
            process.stdin.write(json.dumps(request))
        for line in process.stdout:
            yield json.loads(line)
        process.wait()
