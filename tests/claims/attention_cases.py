"""Planted attention problems that the claims share (one head, 64 wide; tiles of 64 tokens)."""

from __future__ import annotations

from functools import cache

from torch import Tensor

from blockwright.attention import Context, Layout, attend
from blockwright.attention.metrics import density, mass_recall, output_error
from blockwright.attention.planted import PRESETS, Planted, plant
from blockwright.registry import policy_named

TOKENS, SCALE = 4096, 0.125
TILES_OF_64 = {
    "oracle": "oracle@query_block=64,key_block=64,keep=8",
    "random": "random@query_block=64,key_block=64,keep=8",
    "mean": "mean@query_block=64,key_block=64,keep=8",
    "wide mean": "mean@query_block=64,key_block=64,keep=16",
    "quest": "quest@query_block=64,key_block=64,keep=8",
    "xattention": "xattention@block=64,stride=8,keep=8",
    "moba": "moba@block=64,keep=8",
    "window": "window@window=384,sink=64",
    "vertical_slash": "vertical_slash@columns=8,distances=32,sink=1,recent=1",
    "pbs": "pbs@block=64,segment=512,keep=8",
    "s2o": "s2o@eps=0.01",
}


@cache
def planted(preset: str, seed: int = 0) -> Planted:
    return plant(PRESETS[preset], TOKENS, seed=seed)


@cache
def dense_output(preset: str, seed: int = 0) -> Tensor:
    data = planted(preset, seed)
    return attend(data.q, data.k, data.v, policy="dense", context=context()).output


def context(tokens: int = TOKENS, *, causal: bool = True) -> Context:
    return Context(layout=Layout.plain(tokens, tokens, causal=causal), scale=SCALE)


@cache
def measured(policy: str, preset: str) -> tuple[float, float, float]:
    """Recall, output error and density."""
    data = planted(preset)
    done = attend(
        data.q, data.k, data.v, policy=policy_named(TILES_OF_64[policy]), context=context()
    )
    return (
        mass_recall(data.q, data.k, done.choice, context()),
        output_error(done.output, dense_output(preset)),
        density(done.choice, context()),
    )


def recall(policy: str, preset: str) -> float:
    return measured(policy, preset)[0]
