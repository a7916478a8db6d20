"""Real models under attention policies: what they visit, and what it costs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from blockwright.attention.head_thresholds import BlockHeads
from blockwright.attention.huggingface import check_attention
from blockwright.attention.policies.xattention import XAttention
from blockwright.attention.spelling import text_of
from blockwright.attention.visits import BlockVisits
from blockwright.attention.watching import Densities, watched
from blockwright.checkpoint import resolve_model
from blockwright.errors import AttentionError, ModelError
from blockwright.evaluate import measure, run_to_file
from blockwright.pipeline.proving import open_fitted
from blockwright.progress import Progress, SilentProgress
from blockwright.registry import policy_named
from blockwright.report.tile_page import HeadTiles, TilePage
from blockwright.stream import Inputs
from blockwright.texts import bundled_documents, load_tokenizer, tokenize
from blockwright.types import KEEP

QUALITY_LENGTH = 2_048
QUALITY_POLICIES = (
    "xattention@block=32,stride=8,keep=12",
    "mean@query_block=32,key_block=32,keep=12",
    "quest@query_block=32,key_block=16,keep=24,dense_layers=0",
)
"""What ``bench attention`` judges on the shipped model."""
NAMES = {"heldout": "held-out", "calibration": "calibration"}
"""Splits of the shipped text, as they are called."""


def attention_quality(
    model: str, *, tokens: int = 16_384, progress: Progress | None = None
) -> dict[str, Any]:
    """Perplexity of a model on shipped held-out text at ``QUALITY_LENGTH`` tokens, with its own
    attention and by some policies, and what share of the visible tiles these visit.
    """
    progress = progress or SilentProgress()
    inputs, description = _shipped_inputs(model, QUALITY_LENGTH, tokens)
    found: dict[str, Any] = {"text": description}
    with tempfile.TemporaryDirectory() as scratch:
        for name in (str(KEEP), *QUALITY_POLICIES):
            stream, visited = open_fitted(Path(model), kv=str(KEEP), attention=name), Densities()
            with progress.stage(f"attention {name}", len(stream.blocks), "blocks") as stage:
                with watched(visited):
                    hidden = run_to_file(stream, inputs, Path(scratch) / "a.bin", stage.advance)
                found[name] = {"perplexity": measure(hidden).perplexity}
            if name != str(KEEP):
                own = found[str(KEEP)]["perplexity"]
                found[name]["density"] = visited.mean
                found[name]["ratio"] = found[name]["perplexity"] / own
            hidden.file.path.unlink()
    return found


def visited_tiles(
    model: str, policy: str, *, block: int, tokens: int, progress: Progress | None = None
) -> TilePage:
    """The tiles that each head of a block visits when a model reads shipped held-out text."""
    progress = progress or SilentProgress()
    check_attention(policy)
    folder = resolve_model(model, None).path
    stream = open_fitted(folder, kv=str(KEEP), attention=policy)
    if block not in stream.blocks:
        raise ModelError(f"{model} has no block {block}; it has {len(stream.blocks)}")
    inputs, description = _shipped_inputs(str(folder), tokens, tokens)
    visits = BlockVisits(block)
    part = stream.with_blocks(range(block + 1))
    with (
        tempfile.TemporaryDirectory() as scratch,
        progress.stage("read the text", block + 1, "blocks") as stage,
        watched(visits),
    ):
        run_to_file(part, inputs, Path(scratch) / "hidden.bin", stage.advance)
    return TilePage(
        model=model,
        policy=text_of(policy_named(policy)),
        block=block,
        tokens=inputs.values.shape[1],
        text=description,
        heads=tuple(HeadTiles(head=i, **vars(found)) for i, found in enumerate(visits.heads)),
    )


def head_policies(
    model: str,
    policy: str,
    *,
    density: float,
    tokens: int,
    progress: Progress | None = None,
) -> dict[str, str]:
    """Block -> XAttention with the thresholds of its heads that lose least at a density, where the
    model reads ``tokens`` tokens of shipped calibration text densely.

    Raises ``AttentionError`` for another policy, or a density that a block cannot meet.
    """
    progress = progress or SilentProgress()
    one = policy_named(policy)
    if not isinstance(one, XAttention):
        raise AttentionError(f"thresholds per head are xattention's, got {policy}")
    folder = resolve_model(model, None).path
    stream = open_fitted(folder, kv=str(KEEP), attention="dense")
    inputs, _ = _shipped_inputs(str(folder), tokens, tokens, split="calibration")
    heads = BlockHeads(policy=one, density=density)
    with (
        tempfile.TemporaryDirectory() as scratch,
        progress.stage("fit the heads", len(stream.blocks), "blocks") as stage,
        watched(heads),
    ):
        run_to_file(stream, inputs, Path(scratch) / "hidden.bin", stage.advance)
    return {str(block): text_of(found) for block, found in sorted(heads.found.items())}


def _shipped_inputs(
    model: str, length: int, tokens: int, split: str = "heldout"
) -> tuple[Inputs, str]:
    """Windows of shipped text, held-out unless another split is named."""
    tokenizer = load_tokenizer(Path(model))
    text = tokenize(
        bundled_documents(split), tokenizer, length, tokens, 0, name=f"shipped {NAMES[split]} text"
    )
    return Inputs.of_tokens(text.ids), text.description
