"""The fresh process that times one workload of a folder (see ``timing``)."""

from __future__ import annotations

import inspect
import json
import sys
import time
from contextlib import redirect_stdout
from typing import Any

import torch

from blockwright.evaluate.loaded import load, resident_bytes
from blockwright.kvcache import cache_of
from blockwright.stream import fill_cache


@torch.inference_mode()
def run(request: dict[str, Any]) -> dict[str, int]:
    """Least time of a forward over ``steps``, and resident memory before and after."""
    library = resident_bytes()
    model = load(request, "auto")
    model = model if request["device"] == "cpu" else model.to(request["device"])
    loaded = resident_bytes()
    decode = request["phase"] == "decode"
    shape = (request["batch"], 1 if decode else request["context"])
    ids = torch.ones(shape, dtype=torch.long, device=request["device"])
    options = _options(model, request["task"] == "causal-lm")
    if decode:
        cache = cache_of(model.config, request["kv"])
        cache = model(input_ids=ids, past_key_values=cache, **options).past_key_values
        fill_cache(cache, request["context"])
        options["past_key_values"] = cache
    least = _least_ns(lambda: model(input_ids=ids, **options), request)
    return {
        "least_ns": least,
        "library_bytes": library,
        "loaded_bytes": loaded,
        "resident_bytes": resident_bytes(),
    }


def _options(model: Any, causal: bool) -> dict[str, Any]:
    """As in generation: a cache, and logits of the last position alone where that is possible."""
    if not causal:
        return {}
    takes_last = "logits_to_keep" in inspect.signature(model.forward).parameters
    return {"use_cache": True} | ({"logits_to_keep": 1} if takes_last else {})


def _least_ns(forward: Any, request: dict[str, Any]) -> int:
    """The first forward is not counted."""
    least = 0
    for step in range(request["steps"] + 1):
        began = time.perf_counter_ns()
        outputs = forward()
        outputs[0].flatten()[0].item()
        spent = time.perf_counter_ns() - began
        least = spent if step < 2 else min(least, spent)
    return least


def main() -> None:
    """Read the request from stdin, print the answer."""
    request = json.load(sys.stdin)
    torch.set_num_threads(request["threads"])
    with redirect_stdout(sys.stderr):
        answer = run(request)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
