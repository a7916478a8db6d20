"""The fresh process: loads a folder with transformers and answers one question (see ``fresh``)."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

import blockwright  # noqa: F401 - registers the quantizer
from blockwright.attention.huggingface import use_attention
from blockwright.kvcache import cache_of
from blockwright.stream.freed import return_freed_memory

PREFILL_RUNS = 3


def load(request: dict[str, Any], dtype: torch.dtype | str) -> Any:
    builder = AutoModelForCausalLM if request["task"] == "causal-lm" else AutoModel
    model = builder.from_pretrained(
        request["folder"],
        dtype=dtype,
        local_files_only=True,
        trust_remote_code=request["trust_remote_code"],
    ).eval()
    use_attention(model, request["attention"])
    return model


@torch.inference_mode()
def logits(request: dict[str, Any]) -> None:
    """Write the outputs for the given inputs, computed in fp32; nothing is timed here."""
    return_freed_memory()
    model = load(request, torch.float32)
    inputs = load_file(request["inputs"])["inputs"]
    outputs = model(**{request["input_name"]: inputs})
    result = outputs.logits if request["task"] == "causal-lm" else outputs.last_hidden_state
    save_file({"outputs": result.float().contiguous()}, request["outputs"])


@torch.inference_mode()
def speed(request: dict[str, Any]) -> dict[str, Any]:
    """Prefill, decoding and resident memory in the stored dtype."""
    model = load(request, "auto")
    model = model if request["device"] == "cpu" else model.to(request["device"])
    ids = torch.tensor([request["ids"]], device=request["device"])
    causal = request["task"] == "causal-lm"
    prefill = min(_seconds(lambda: model(input_ids=ids)) for _ in range(PREFILL_RUNS))
    cache = cache_of(model.config, request["kv"]) if causal else None
    decode = _decode_seconds(model, ids, request["decode_tokens"], cache) if causal else None
    return {
        "prefill_tokens_per_second": ids.shape[1] / prefill,
        "decode_tokens_per_second": 1 / decode if decode else None,
        "resident_bytes": resident_bytes(),
        "threads": torch.get_num_threads(),
    }


def _decode_seconds(model: Any, ids: torch.Tensor, steps: int, cache: Any) -> float:
    """Least seconds per token over ``steps`` greedy steps with a KV cache."""
    outputs = model(input_ids=ids, past_key_values=cache, use_cache=True)
    best = float("inf")
    for _ in range(steps):
        following = outputs.logits[:, -1:].argmax(-1)
        began = time.perf_counter()
        outputs = model(
            input_ids=following, past_key_values=outputs.past_key_values, use_cache=True
        )
        outputs.logits[0, -1, 0].item()
        best = min(best, time.perf_counter() - began)
    return best


def _seconds(call: Any) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def resident_bytes() -> int:
    """Resident memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Speed first: what it holds in memory is then the model alone."""
    request = json.load(sys.stdin)
    torch.set_num_threads(request["threads"])
    with redirect_stdout(sys.stderr):
        answer = speed(request) if request["ids"] else {}
        if request["inputs"]:
            logits(request)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
