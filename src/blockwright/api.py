"""What one can do with a model beside fitting it: measure it, look into it, run it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from blockwright import evaluate
from blockwright.anatomy import Skeleton, build_skeleton
from blockwright.attention.huggingface import (
    attends_by_policy,
    check_attention,
    use_attention,
)
from blockwright.attention.spelling import text_of
from blockwright.attention.watching import Densities, watched
from blockwright.checkpoint import Checkpoint, resolve_model
from blockwright.errors import ModelError, TextError
from blockwright.evaluate import Loading, ask_fresh_process, measure, run_to_file
from blockwright.kvcache import Formats, cache_of, chosen_formats, own_layers
from blockwright.machine import count_memory, measure_profile
from blockwright.pipeline.opening import check_device
from blockwright.pipeline.presets import CANDIDATES, HELDOUT_TOKENS, LONGEST_SEQUENCE
from blockwright.pipeline.proving import (
    LOAD_BYTES_PER_SECOND,
    SPEED_PREFILL_TOKENS,
    fresh_seconds,
    open_fitted,
)
from blockwright.pipeline.weighing import packed_formats
from blockwright.progress import Progress, SilentProgress, Stage
from blockwright.registry import policy_named
from blockwright.stream import Inputs, Stream
from blockwright.texts import TokenSet, load_tokenizer, read_documents, tokenize
from blockwright.types import KEEP, Candidate, Profile, Quality, SiteKind, Workload

SCORE_TOKENS = 4_096
"""Tokens that blocks are scored on."""


def evaluate_model(
    model: str,
    *,
    eval_text: Path,
    against: str | None = None,
    kv: str | None = None,
    attention: str | None = None,
    eval_tokens: int | None = None,
    sequence_length: int | None = None,
    revision: str | None = None,
    seed: int = 0,
    threads: int | None = None,
    device: str = "cpu",
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Quality on a text (against an original, if named), bytes, speed and memory.

    ``kv``: format of the KV cache, as if every token had been decoded with it; without ``against``
    the distance is from the same model with an ordinary cache.  ``attention``: policy of every
    block (``xattention``, ``moba@block=64``), ``keep`` for the model's own; without ``against``
    the distance is from the same model with its own.  None: as the folder says.

    Perplexity, KL divergence and agreement are computed in fp32, block by block from disk; speed
    is that of a fresh process that loads the folder in its stored dtype.
    """
    set_threads(threads)
    check_device(device)
    progress = progress or SilentProgress()
    folder = resolve_model(model, revision, trust_remote_code=trust_remote_code).path
    stream = open_fitted(folder, trust_remote_code, device, kv, attention)
    if stream.skeleton.task == "vision":
        raise ModelError(f"{model}: evaluate needs a text model")
    if stream.skeleton.task != "causal-lm" and against is None:
        raise ModelError(f"{model} has no language head: name its original with --against")
    formats = chosen_formats(stream.skeleton.config, kv)
    by_policy = attends_by_policy(stream.skeleton.model)
    own = folder if formats or by_policy else None
    other = _open_compared(own, against, trust_remote_code, device)
    if other is not None and other.skeleton.config.vocab_size != stream.skeleton.config.vocab_size:
        raise TextError(f"{against} has another vocabulary than {model}; name its original")
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    tokens = _read_tokens(stream, tokenizer, eval_text, sequence_length, eval_tokens, seed)
    inputs = Inputs.of_tokens(tokens.ids)
    if note := own_layers(stream.skeleton.config, formats):
        progress.note(note)
    progress.note(tokens.description)
    visited = Densities()
    with watched(visited):
        quality = _measure_quality(stream, other, inputs, progress)
    loading = Loading(
        folder=folder,
        task=stream.skeleton.task,
        device=device,
        trust_remote_code=trust_remote_code,
        kv=kv,
        attention=attention,
    )
    size = Checkpoint.open(folder).total_file_bytes
    with progress.stage("measure speed", expected_seconds=fresh_seconds(size, 1)):
        speed = ask_fresh_process(loading, speed_ids=tokens.ids[0, :SPEED_PREFILL_TOKENS]).speed
    return {
        "model": model,
        **asdict(quality),
        "size_bytes": size,
        **(asdict(speed) if speed else {}),
        **_cache_figures(stream.skeleton, formats, tokens.sequence_length),
        **({"attention_density": visited.mean} if by_policy else {}),
        "sequence_length": tokens.sequence_length,
    }


def _read_tokens(
    stream: Stream,
    tokenizer: Any,
    text: Path,
    sequence_length: int | None,
    tokens: int | None,
    seed: int,
) -> TokenSet:
    """The tokens of a text, in sequences that the model can read."""
    limit = getattr(stream.skeleton.config, "max_position_embeddings", None) or LONGEST_SEQUENCE
    return tokenize(
        read_documents(text),
        tokenizer,
        min(sequence_length or LONGEST_SEQUENCE, int(limit)),
        tokens or HELDOUT_TOKENS,
        seed,
        at_least=tokens or 1,
        name=str(text),
    )


def _open_compared(
    own: Path | None, against: str | None, trust_remote_code: bool, device: str
) -> Stream | None:
    """What a model is compared with, with an ordinary KV cache and its own attention: its original,
    else itself.
    """
    path = own
    if against is not None:
        path = resolve_model(against, None, trust_remote_code=trust_remote_code).path
    if path is None:
        return None
    return open_fitted(path, trust_remote_code, device, kv=str(KEEP), attention=str(KEEP))


def _cache_figures(skeleton: Skeleton, formats: Formats, context: int) -> dict[str, Any]:
    """Bytes of the KV cache of one text, and of an ordinary one in the stored dtype."""
    if not formats:
        return {}
    found = {format.name: format for format in formats.values()}
    memory = count_memory(skeleton, list(found.values()))
    named = {f"{skeleton.block_path}.{index}": f.name for index, f in formats.items()}
    return {
        "kv_cache": ", ".join(sorted(found)),
        "kv_cache_bytes": memory.cache_bytes(context, named),
        "kv_cache_bytes_ordinary": memory.cache_bytes(context),
    }


def _measure_quality(
    stream: Stream, other: Stream | None, inputs: Inputs, progress: Progress
) -> Quality:
    """A model's figures on some inputs; with another, its distance from that."""
    streams = [stream] if other is None else [stream, other]
    parts = sum(len(model.blocks) for model in streams) + 1
    with (
        tempfile.TemporaryDirectory() as scratch,
        progress.stage("measure quality", parts, "parts") as stage,
    ):
        hidden = [
            run_to_file(model, inputs, Path(scratch) / f"{index}.bin", stage.advance)
            for index, model in enumerate(streams)
        ]
        quality = measure(hidden[0], hidden[1] if other is not None else None)
        stage.advance()
    return quality


def inspect_model(
    model: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> dict[str, Any]:
    """Blocks and sites of a model, and the bytes of stem and head."""
    folder = resolve_model(model, revision, trust_remote_code=trust_remote_code).path
    skeleton = build_skeleton(folder, trust_remote_code=trust_remote_code)
    return {
        "model": model,
        "model_type": skeleton.config.model_type,
        "task": skeleton.task,
        "blocks": skeleton.num_blocks,
        "block_path": skeleton.block_path,
        "linear_weights": skeleton.linear_weights,
        "stem_bytes": skeleton.stem_bytes,
        "head_bytes": skeleton.head_bytes,
        "size_bytes": Checkpoint.open(folder).total_file_bytes,
        "sites": [
            {
                "id": site.id,
                "kind": site.kind.value,
                "block": site.block,
                "shape": list(site.shape),
                "parameters": site.weights,
            }
            for site in skeleton.sites
            if site.kind is not SiteKind.BLOCK or site.weights
        ],
    }


def score_blocks(
    model: str,
    *,
    text: Path,
    tokens: int | None = None,
    sequence_length: int | None = None,
    revision: str | None = None,
    seed: int = 0,
    threads: int | None = None,
    device: str = "cpu",
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """What every block of a text model does and what its removal costs, on a text.

    ``block_influence``: mean 1 - cosine of its output to its input (ShortGPT); ``macro_influence``:
    of the model's last hidden states without it to those with it (FuseGPT); ``drop_loss``: KL in
    nats per token without it, of models without a language head the squared relative error.
    """
    set_threads(threads)
    check_device(device)
    progress = progress or SilentProgress()
    folder = resolve_model(model, revision, trust_remote_code=trust_remote_code).path
    stream = open_fitted(folder, trust_remote_code, device, kv=str(KEEP))
    if stream.skeleton.task == "vision":
        raise ModelError(f"{model}: scores of blocks need a text model")
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    found = _read_tokens(stream, tokenizer, text, sequence_length, tokens or SCORE_TOKENS, seed)
    progress.note(found.description)
    with (
        tempfile.TemporaryDirectory() as scratch,
        progress.stage("score blocks", len(stream.blocks), "blocks") as stage,
    ):
        inputs = Inputs.of_tokens(found.ids)
        scores = evaluate.score_blocks(stream, inputs, Path(scratch), advance=stage.advance)
    return [
        {
            "block": each.block,
            "block_influence": each.block_influence,
            "macro_influence": each.macro_influence,
            "relative_change": each.own.relative_change,
            "drop_loss": each.drop_loss,
            "perplexity_without": each.without.perplexity if each.without else None,
        }
        for each in scores
    ]


def generate_text(
    model: str,
    prompt: str,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    kv: str | None = None,
    attention: str | None = None,
    revision: str | None = None,
    seed: int = 0,
    threads: int | None = None,
    device: str = "cpu",
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> str:
    """Continue a prompt with a KV cache; temperature 0 takes the most likely token.

    ``kv``: format of the cache (``int4``), ``keep`` for an ordinary one; ``attention``: policy of
    every block (``xattention``), ``keep`` for the model's own; None: as the folder says.
    """
    from transformers import AutoModelForCausalLM

    set_threads(threads)
    check_device(device)
    check_attention(attention)
    torch.manual_seed(seed)
    progress = progress or SilentProgress()
    source = resolve_model(model, revision, trust_remote_code=trust_remote_code)
    tokenizer = load_tokenizer(source.path, trust_remote_code=trust_remote_code)
    skeleton = build_skeleton(source.path, trust_remote_code=trust_remote_code)
    if skeleton.task != "causal-lm":
        raise ModelError(f"{model} has no language head: it cannot generate")
    formats = chosen_formats(skeleton.config, kv)
    if note := own_layers(skeleton.config, formats):
        progress.note(note)
    encoded = tokenizer(prompt, return_tensors="pt").to(device)
    if encoded["input_ids"].shape[1] == 0:
        raise TextError("the prompt is empty; give at least one token")
    size = Checkpoint.open(source.path).total_file_bytes
    with progress.stage("load the model", expected_seconds=size / LOAD_BYTES_PER_SECOND):
        loaded = AutoModelForCausalLM.from_pretrained(
            source.path, dtype="auto", trust_remote_code=trust_remote_code
        ).to(device)
    use_attention(loaded, attention)
    cache = cache_of(loaded.config, kv)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {}
    visited = Densities()
    with watched(visited), progress.stage("generate", max_new_tokens, "tokens") as stage:
        output = loaded.generate(
            input_ids=encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
            streamer=_Told(stage),
            **({} if cache is None else {"past_key_values": cache}),
            **(sampling or {"do_sample": False}),
        )
    read = encoded["input_ids"].shape[1]
    if visited.mean is not None:
        progress.note(f"attention visited {visited.mean:.0%} of the tiles of {read} prompt tokens")
    new_tokens = output[0, read:]
    return str(tokenizer.decode(new_tokens, skip_special_tokens=True))


def kv_cache(model: Any, kv: str | None = None) -> Any:
    """An empty KV cache for one ``model.generate(past_key_values=...)`` of transformers.

    ``model``: a loaded model; ``kv``: a format (``int4``), ``keep`` for an ordinary cache; None: as
    the fitted folder says, ordinary where it says nothing.
    """
    cache = cache_of(model.config, kv)
    return DynamicCache(config=model.config) if cache is None else cache


class _Told:
    """Tells a stage of every token that transformers' generation puts; the prompt comes first."""

    def __init__(self, stage: Stage) -> None:
        self._stage, self._tokens = stage, 0

    def put(self, _: object) -> None:
        self._stage.advance(min(self._tokens, 1))
        self._tokens += 1

    def end(self) -> None:
        """Nothing is held back."""


def profile_model(
    model: str,
    *,
    workload: Workload | None = None,
    candidates: Sequence[str] = (),
    attention: Sequence[str] = (),
    threads: int | None = None,
    device: str = "cpu",
    revision: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Profile:
    """Measure the machine profile of a model's shapes; see ``blockwright profile --help``."""
    set_threads(threads)
    check_device(device)
    folder = resolve_model(model, revision, trust_remote_code=trust_remote_code).path
    skeleton = build_skeleton(folder, trust_remote_code=trust_remote_code)
    offered = candidates or sorted({text for found in CANDIDATES.values() for text in found})
    return measure_profile(
        skeleton,
        packed_formats(map(Candidate.parse, offered)),
        workload or Workload(),
        model=model,
        progress=progress or SilentProgress(),
        device=device,
        policies=[text_of(policy_named(text)) for text in attention],
    )


def set_threads(threads: int | None) -> None:
    """Use this many threads, by default all that the process may use."""
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
