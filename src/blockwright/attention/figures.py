"""All that ``bench attention`` promises, in one run: speed, memory, recall, growth with the length.

Every ratio is of medians taken in turn with fused dense attention, choosing included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from blockwright.attention.benchmark import RECALL_ROWS, Case, Setting
from blockwright.attention.metrics import mass_recall, output_error
from blockwright.attention.policy import Policy
from blockwright.attention.scaling import LENGTHS, scaling
from blockwright.errors import AttentionError
from blockwright.registry import policy_named

HEADLINE = ("xattention", "mean", "pbs")
"""Policies of whole tiles, timed at every density."""
AT_DENSITY = ((8192, 0.25, 0.6, None), (8192, 0.10, 0.35, None), (32768, 0.10, 0.2, 1.5))
"""Tokens, density, and the promised parts of dense attention's time and peak memory."""
BIDIRECTIONAL = ("blade", "adaspa", "vmoba", "llsa", "pisa")
"""Policies of images and video, beside bidirectional dense attention."""
OTHERS = ("moba@block=64", "moba_fine@block=64", "nsa", "quest", "s2o", "vertical_slash", "window")
"""Policies by token, by single keys, by rule: the densest that still wins is looked for."""
OTHER_TOKENS = 8192
DENSITIES = (0.5, 0.35, 0.25, 0.15, 0.1, 0.05)
SEARCH_REPEATS = 3
TABLE = {
    "oracle": "oracle@query_block=64,key_block=64,keep=8",
    "xattention, stride 8": "xattention@block=64,stride=8,keep=8",
    "xattention, stride 16": "xattention@block=64,stride=16,keep=8",
    "mean": "mean@query_block=64,key_block=64,keep=8",
    "quest": "quest@query_block=64,key_block=64,keep=8",
    "window": "window@window=384,sink=64",
    "random": "random@query_block=64,key_block=64,keep=8",
}
TABLE_TOKENS, TABLE_DATA, TABLE_SEEDS = 4096, ("vert", "slash", "cluster", "mixed"), 3
COLUMNS = ("mass_recall", "output_error", "density")


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A policy at a density."""

    density: float
    ratio: float


@dataclass(frozen=True, kw_only=True)
class Winning:
    """The greatest density at which a policy is faster than dense attention."""

    policy: str
    tokens: int
    tried: tuple[Tried, ...]
    """From dense to sparse."""
    density: float | None = None
    """None: at none of those that were tried; then there is no recall and no error either."""
    mass_recall: float | None = None
    output_error: float | None = None


def all_figures(
    setting: Setting,
    *,
    lengths: Sequence[int] = LENGTHS,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """JSON-able; ``setting``'s tokens and data are those of the parts; ``advance`` is called after
    each of ``parts()``."""
    speed = []
    for tokens, wanted, *promised in AT_DENSITY:
        speed += at_density(replace(setting, tokens=tokens, data="mixed"), wanted, *promised)
        advance()
    others = []
    for causal, names in ((True, OTHERS), (False, BIDIRECTIONAL)):
        case = Case.made(replace(setting, tokens=OTHER_TOKENS, data="mixed", causal=causal))
        for name in names:
            others.append(winning(name, case))
            advance()
    table = {data: _rows(replace(setting, tokens=TABLE_TOKENS, data=data)) for data in TABLE_DATA}
    advance()
    growth = scaling(lengths, heads=setting.heads, seed=setting.seed)
    advance()
    return {
        "setting": asdict(setting),
        "at_density": speed,
        "densest_that_wins": [asdict(found) for found in others],
        "at_eight_tiles": table,
        "growth": {name: asdict(found) for name, found in growth.items()},
    }


def parts() -> int:
    """How often ``all_figures`` advances."""
    return len(AT_DENSITY) + len(OTHERS) + len(BIDIRECTIONAL) + 2


def at_density(
    setting: Setting, wanted: float, promised: float, peak: float | None
) -> list[dict[str, Any]]:
    """The headline policies at a density, each with what was promised; those whose least budget
    visits more are left out."""
    case = Case.made(setting)
    policies = [met for name in HEADLINE if (met := met_or_none(case, name, wanted)) is not None]
    return [
        asdict(found)
        | {"wanted_density": wanted, "promised_ratio": promised, "promised_peak_ratio": peak}
        for found in case.measure(policies)
    ]


def met_or_none(case: Case, name: str, wanted: float) -> Policy | None:
    """A policy moved to a density, if it can be."""
    try:
        return case.meet(policy_named(name), wanted)
    except AttentionError:
        return None


def winning(name: str, case: Case) -> Winning:
    """From dense to sparse, until the policy is faster."""
    tried = []
    for wanted in DENSITIES:
        policy = met_or_none(case, name, wanted)
        if policy is None:
            break
        dense, (seconds,) = case.time([policy], min(SEARCH_REPEATS, case.setting.repeats))
        tried.append(Tried(density=case.density(policy), ratio=seconds / dense))
        if seconds < dense:
            recall, error = kept(case, policy)
            return Winning(
                policy=name,
                tokens=case.setting.tokens,
                tried=tuple(tried),
                density=tried[-1].density,
                mass_recall=recall,
                output_error=error,
            )
    return Winning(policy=name, tokens=case.setting.tokens, tried=tuple(tried))


def kept(case: Case, policy: Policy) -> tuple[float, float]:
    """Recall and output error."""
    done = case.attend(policy)
    recall = mass_recall(case.q, case.k, done.choice, case.context, rows=RECALL_ROWS)
    return recall, output_error(done.output, case.dense())


def _rows(setting: Setting) -> dict[str, dict[str, float]]:
    """Means over seeds of every policy of the table, fp32, one head."""
    setting = replace(setting, heads=1, kv_heads=1, dtype="float32")
    found: dict[str, dict[str, float]] = {}
    for seed in range(TABLE_SEEDS):
        case = Case.made(replace(setting, seed=setting.seed + seed))
        for name, text in TABLE.items():
            policy = policy_named(text)
            recall, error = kept(case, policy)
            row = found.setdefault(name, dict.fromkeys(COLUMNS, 0.0))
            for column, value in zip(COLUMNS, (recall, error, case.density(policy)), strict=True):
                row[column] += value / TABLE_SEEDS
    return found
