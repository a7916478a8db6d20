"""KV caches: what each format costs at 2,048 tokens, and what it holds.

Loss: KL of the next-token distributions to those with an ordinary cache, on held-out text, as if
every token had been decoded.  Bytes: of a real cache after the model has read the text, and what
the process grows by for each of several that are alive.  Time: of one decoded token.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from blockwright.evaluate import (
    FinalHidden,
    Loading,
    TimedFolder,
    measure,
    run_to_file,
    time_folder,
)
from blockwright.evaluate.loaded import resident_bytes
from blockwright.kvcache import cache_of, held_bytes
from blockwright.pipeline.proving import open_fitted
from blockwright.stream import Inputs
from blockwright.texts import bundled_documents, load_tokenizer, tokenize
from blockwright.types import Workload

FORMATS = (
    "int8",
    "int8@keys=token",
    "int4",
    "int4@keys=token",
    "int4@keys=token,sort=true",
    "int4-g32",
    "int4@window=0",
    "int3",
    "int2",
    "bfp8",
    "bfp6",
    "bfp4",
    "bfp4@sort=false",
    "bfp4-b16",
)
TIMED = ("keep", "int8", "int4", "bfp4")
CONTEXT, ROWS, ALIVE = 2048, 8, 16


def run(model: Path, tokens: int, rounds: int) -> dict[str, Any]:
    """Figures by format; ``keep`` is the ordinary cache."""
    text = tokenize(
        bundled_documents("heldout"),
        load_tokenizer(model),
        CONTEXT,
        tokens,
        0,
        name="held-out text",
    )
    inputs = Inputs.of_tokens(text.ids)
    found: dict[str, Any] = {
        "text": text.description,
        "keep": {"held_bytes": held(model, inputs, "keep")},
    }
    with TemporaryDirectory() as scratch:
        ordinary = hidden(model, inputs, "keep", Path(scratch))
        for name in FORMATS:
            quality = measure(hidden(model, inputs, name, Path(scratch)), ordinary)
            kept = held(model, inputs, name)
            found[name] = {
                "kl_divergence": quality.kl_divergence,
                "top1_agreement": quality.top1_agreement,
                "held_bytes": kept,
                "held_ratio": kept / found["keep"]["held_bytes"],
            }
            print(name, found[name], flush=True)
    for name, timed in in_turn(model, rounds).items():
        found[name] |= {
            "decode_ms": timed.least_ns / 1e6,
            "grown_bytes": grown(model, inputs, name),
        }
    return found


def hidden(model: Path, inputs: Inputs, kv: str, scratch: Path) -> FinalHidden:
    """Last hidden states with a cache, in fp32."""
    target = scratch / f"{kv}.bin"
    return run_to_file(open_fitted(model, kv=kv), inputs, target)


def held(model: Path, inputs: Inputs, kv: str) -> int:
    """Bytes of a cache after one text was read, in the stored dtype."""
    return held_bytes(filled(load(model), inputs, kv))


def grown(model: Path, inputs: Inputs, kv: str) -> int:
    """Resident bytes that a cache adds to the process, mean of ``ALIVE``."""
    loaded = load(model)
    caches = [filled(loaded, inputs, kv)]  # the first one warms up
    before = resident_now()
    caches += [filled(loaded, inputs, kv) for _ in range(ALIVE)]
    return (resident_now() - before) // ALIVE


def load(model: Path) -> Any:
    """The model in its stored dtype."""
    return AutoModelForCausalLM.from_pretrained(model, dtype="auto")


@torch.inference_mode()
def filled(loaded: Any, inputs: Inputs, kv: str) -> Any:
    """A cache that has read one text."""
    cache = cache_of(loaded.config, kv) or DynamicCache(config=loaded.config)
    loaded(inputs.values[:1], past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def resident_now() -> int:
    """Resident memory once all that was freed is given back."""
    ctypes.CDLL(None).malloc_trim(0)
    return resident_bytes()


def in_turn(model: Path, rounds: int) -> dict[str, TimedFolder]:
    """Decoding of several rows with each cache, one after another; the least of each."""
    best: dict[str, TimedFolder] = {}
    workload = Workload(batch=ROWS, context=CONTEXT)
    for _ in range(rounds):
        for name in TIMED:
            timed = time_folder(Loading(folder=model, task="causal-lm", kv=name), workload)
            if name not in best or timed.least_ns < best[name].least_ns:
                best[name] = timed
    return best
