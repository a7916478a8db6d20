"""How cost grows with the length: seconds at several lengths, policies and mixers beside dense."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, scaled_dot_product_attention

from blockwright.attention.calling import attend
from blockwright.attention.layout import Layout
from blockwright.attention.mixers.block_linear import BlockLinear
from blockwright.attention.mixers.gla import Gla
from blockwright.attention.mixers.lightning import Lightning, slopes
from blockwright.attention.planted import WIDTH, plant, preset_named
from blockwright.attention.policies.llsa import Llsa
from blockwright.attention.policy import Context

LENGTHS = (4096, 8192, 16384, 32768)
CHUNK = 128
"""Tokens of a mixer's chunk."""


@dataclass(frozen=True, kw_only=True)
class Growth:
    """Seconds by tokens, and the power of the length that they grow with."""

    seconds: Mapping[int, float]
    power: float
    """Slope of log seconds over log tokens, least squares: 1 is linear, 2 quadratic."""


def scaling(
    lengths: Sequence[int] = LENGTHS, *, heads: int = 4, repeats: int = 3, seed: int = 0
) -> dict[str, Growth]:
    """Dense attention (bidirectional), LLSA, and the mixers, each at every length; bfloat16 for
    attention, as planted, mixers in their own fp32."""
    taken: dict[str, dict[int, float]] = {}
    for tokens in lengths:
        made = plant(preset_named("cluster"), tokens, heads=heads, seed=seed)
        for name, run in runs(made.q, made.k, made.v).items():
            taken.setdefault(name, {})[tokens] = _median_seconds(run, repeats)
    return {name: Growth(seconds=found, power=power_of(found)) for name, found in taken.items()}


def runs(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Callable[[], object]]:
    """One call of each, choosing included."""
    heads, tokens = q.shape[1], q.shape[2]
    halves = q.bfloat16(), k.bfloat16(), v.bfloat16()
    layout = Layout.plain(tokens, tokens, causal=False)
    context = Context(layout=layout, scale=WIDTH**-0.5)
    lightning = Lightning(slopes=slopes(heads))
    gates = logsigmoid(k) / 16
    unit = tuple(torch.nn.functional.silu(x) for x in (q, k))
    positive = tuple(torch.relu(x) for x in (q, k))
    streams = (*positive, *positive, v)
    return {
        "dense": lambda: scaled_dot_product_attention(*halves),
        "llsa": lambda: attend(*halves, policy=Llsa(levels=2), context=context),
        "lightning": lambda: lightning.forward(*unit, v, size=CHUNK),
        "gla": lambda: Gla().forward(*unit, v, gates, size=CHUNK),
        "block_linear": lambda: BlockLinear(block=CHUNK).forward(*streams, size=CHUNK),
    }


def power_of(seconds: Mapping[int, float]) -> float:
    """Least-squares slope of log seconds over log tokens."""
    x = [math.log(tokens) for tokens in seconds]
    y = [math.log(taken) for taken in seconds.values()]
    return statistics.linear_regression(x, y).slope


def _median_seconds(run: Callable[[], object], repeats: int) -> float:
    taken = []
    with torch.no_grad():
        run()
        for _ in range(repeats):
            began = time.perf_counter()
            run()
            taken.append(time.perf_counter() - began)
    return statistics.median(taken)
