"""KV caches as candidates: every block's cache in every format on offer, by its measured loss.

On offer where memory is the limit.  Reading a quantized cache takes time that no profile holds, so
there is none under a limit on speed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from blockwright.evaluate import FinalHidden
from blockwright.kvcache import quantizable_layers
from blockwright.machine import count_memory
from blockwright.pipeline.measuring import measure_change, planned_caches
from blockwright.pipeline.opening import Run
from blockwright.types import (
    KEEP,
    CacheFormat,
    Choice,
    Option,
    Plan,
    Problem,
    cache_site,
)

OFFERED = ("int8", "int4")
"""Formats on offer unless the user names others."""


@dataclass(frozen=True)
class CacheOffer:
    """The formats on offer for one block's cache."""

    site: str
    formats: tuple[CacheFormat, ...]


def formats_on_offer(run: Run) -> tuple[CacheFormat, ...]:
    """Formats of KV caches that this run may choose."""
    return tuple(format for format in _formats_asked(run) if not _refused(run, format))


def unavailable_caches(run: Run) -> dict[str, str]:
    """``KV caches FORMAT`` -> why it is not on offer."""
    reasons = {f"KV caches {f.name}": _refused(run, f) for f in _formats_asked(run)}
    return {name: reason for name, reason in reasons.items() if reason}


def _formats_asked(run: Run) -> tuple[CacheFormat, ...]:
    if run.skeleton.task != "causal-lm":
        return ()
    if run.edited is not None:
        found = planned_caches(run.edited).values()
        return tuple({format.name: format for format in found}.values())
    budget = run.request.budget
    if budget is None or budget.ram_bytes is None:
        return ()
    named = [text for text in run.request.kv or OFFERED if text != str(KEEP)]
    return tuple({(f := CacheFormat.parse(text)).name: f for text in named}.values())


def _refused(run: Run, format: CacheFormat) -> str:
    """Why a format is not on offer; empty where it is.  What a plan file names is."""
    if run.edited is not None:
        return ""
    budget, length = run.request.budget, run.texts.calibration.sequence_length
    if budget is not None and budget.speedup is not None:
        return "reading it takes time that no profile holds; leave --speedup out"
    needed = format.window + format.page + 1
    if length >= needed:
        return ""
    return (
        f"calibration sequences of {length} tokens never leave its window; give"
        f" --sequence-length {needed} or more"
    )


def caches_on_offer(run: Run) -> list[CacheOffer]:
    """Blocks whose cache may be quantized, with the formats that save memory at the context; the
    blocks that a plan file names, with all formats it names.
    """
    if run.skeleton.task != "causal-lm":
        return []
    path, formats, budget = run.skeleton.block_path, formats_on_offer(run), run.request.budget
    standing: dict[str, list[CacheFormat]] = {}
    for format in formats:
        for index in quantizable_layers(run.skeleton.config, format):
            standing.setdefault(f"{path}.{index}", []).append(format)
    if run.edited is not None:
        blocks = [f"{path}.{index}" for index in range(run.skeleton.num_blocks)]
        named = [block for block in blocks if cache_site(block) in run.edited.choices]
        return [CacheOffer(cache_site(b), tuple(standing.get(b, ()))) for b in named]
    if not standing or budget is None:
        return []
    memory, context = count_memory(run.skeleton, formats), budget.context
    saving = {
        block: tuple(f for f in found if memory.changed_by_cache(block, f.name, context) < 0)
        for block, found in standing.items()
    }
    return [CacheOffer(cache_site(block), found) for block, found in saving.items() if found]


def cache_options(run: Run, offer: CacheOffer, original: FinalHidden) -> list[Option]:
    """Keep a block's cache, or quantize it: what that alone costs when every token is decoded."""

    found = []
    for option in declared_caches(offer):
        choice = Choice(candidate=option.candidate, stored_bytes=0, loss=0.0)
        kept = option.candidate == str(KEEP)
        loss = 0.0 if kept else measure_change(run, {offer.site: choice}, original)
        found.append(replace(option, loss=loss))
    return found


def declared_caches(offer: CacheOffer) -> list[Option]:
    """The options of a block's cache, their losses unknown."""
    names = [str(KEEP), *(format.name for format in offer.formats)]
    return [
        Option(site=offer.site, candidate=name, weights=0, stored_bytes=0, loss=0.0)
        for name in names
    ]


def cache_notes(run: Run, problem: Problem, plan: Plan) -> tuple[str, ...]:
    """What the user must know of the caches that a plan quantizes."""
    planned = planned_caches(plan)
    if not planned or problem.memory is None:
        return ()
    context = int((plan.workload or {}).get("context", 0))
    path = run.skeleton.block_path
    named = {f"{path}.{index}": format.name for index, format in planned.items()}
    counted = Counter(named.values())
    formats = ", ".join(f"{name} in {count} blocks" for name, count in sorted(counted.items()))
    bytes_now = problem.memory.cache_bytes(context, named)
    ordinary = problem.memory.cache_bytes(context)
    return (
        f"KV cache: {formats}, {bytes_now} bytes at {context} tokens instead of {ordinary};"
        " `blockwright generate` uses it, plain transformers its own unless it is given one"
        " (blockwright.kv_cache)",
    )
