"""All that ``bench attention`` promises, in one run: speed, recall, growth with the length.

Every ratio is of medians taken in turn with fused dense attention, choosing included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from blockwright.attention.benchmark import (
    Figures,
    Setting,
    bench,
    fused_dense,
    made_context,
    made_inputs,
)
from blockwright.attention.calling import attend
from blockwright.attention.metrics import density, mass_recall, output_error
from blockwright.attention.scaling import LENGTHS, scaling
from blockwright.errors import AttentionError
from blockwright.registry import policy_named

HEADLINE = ("xattention", "mean", "pbs")
"""Policies of whole tiles, timed at every density."""
AT_DENSITY = ((8192, 0.25), (8192, 0.10), (32768, 0.10))
"""Tokens and density."""
OTHERS = ("moba@block=64", "moba_fine@block=64", "nsa", "quest", "s2o", "vertical_slash", "window")
"""Policies by token, by single keys, by rule: the densest that still wins is looked for."""
OTHER_TOKENS = 8192
DENSITIES = (0.5, 0.35, 0.25, 0.15, 0.1, 0.05)
TABLE = {
    "oracle": "oracle@query_block=64,key_block=64,keep=8",
    "xattention, stride 8": "xattention@block=64,stride=8,keep=8",
    "xattention, stride 16": "xattention@block=64,stride=16,keep=8",
    "mean": "mean@query_block=64,key_block=64,keep=8",
    "quest": "quest@query_block=64,key_block=64,keep=8",
    "window": "window@window=384,sink=64",
    "random": "random@query_block=64,key_block=64,keep=8",
}
TABLE_TOKENS, TABLE_DATA = 4096, ("vert", "slash", "cluster", "mixed")


@dataclass(frozen=True, kw_only=True)
class Winning:
    """The greatest density at which a policy is faster than dense attention."""

    policy: str
    tokens: int
    tried: tuple[Figures, ...]
    density: float | None
    """None: at none of those that were tried."""


def all_figures(
    setting: Setting,
    *,
    lengths: Sequence[int] = LENGTHS,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """JSON-able; ``setting``'s tokens and data are those of the parts; ``advance`` is called after
    each of ``parts()``."""
    speed = []
    for tokens, wanted in AT_DENSITY:
        for name in HEADLINE:
            speed.append(at_density(name, replace(setting, tokens=tokens, data="mixed"), wanted))
            advance()
    others = []
    for name in OTHERS:
        others.append(winning(name, replace(setting, tokens=OTHER_TOKENS, data="mixed")))
        advance()
    table = {data: _row(replace(setting, tokens=TABLE_TOKENS, data=data)) for data in TABLE_DATA}
    advance()
    growth = scaling(lengths, heads=setting.heads, repeats=setting.repeats, seed=setting.seed)
    advance()
    return {
        "setting": asdict(setting),
        "at_density": [asdict(figures) if figures else None for figures in speed],
        "densest_that_wins": [asdict(found) for found in others],
        "at_eight_tiles": table,
        "growth": {name: asdict(found) for name, found in growth.items()},
    }


def parts() -> int:
    """How often ``all_figures`` advances."""
    return len(AT_DENSITY) * len(HEADLINE) + len(OTHERS) + 2


def at_density(policy: str, setting: Setting, wanted: float) -> Figures | None:
    """A policy at a density; None where its least budget visits more."""
    try:
        return bench(policy_named(policy), setting, target=wanted)
    except AttentionError:
        return None


def winning(policy: str, setting: Setting) -> Winning:
    """From dense to sparse, until the policy is faster."""
    tried = []
    for wanted in DENSITIES:
        figures = at_density(policy, setting, wanted)
        if figures is None:
            break
        tried.append(figures)
        if figures.ratio < 1:
            break
    fastest = tried[-1] if tried and tried[-1].ratio < 1 else None
    return Winning(
        policy=policy,
        tokens=setting.tokens,
        tried=tuple(tried),
        density=fastest.density if fastest else None,
    )


def _row(setting: Setting) -> dict[str, dict[str, float]]:
    """Recall and output error of every policy of the table, fp32, one head."""
    setting = replace(setting, heads=1, kv_heads=1, dtype="float32")
    q, k, v = made_inputs(setting)
    context, dense = made_context(setting), fused_dense(q, k, v)
    found = {}
    for name, policy in TABLE.items():
        done = attend(q, k, v, policy=policy, context=context)
        found[name] = {
            "mass_recall": mass_recall(q, k, done.choice, context),
            "output_error": output_error(done.output, dense),
            "density": density(done.choice, context),
        }
    return found
