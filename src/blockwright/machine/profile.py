"""The machine profile: measured once, explicitly, stored and hashed; nothing else timed decides.

1. a hollow forward counts how often every site multiplies, and for how many tokens
2. every distinct product is timed dense and in every format, interleaved
3. the hollow model is timed: all that is no site; as the original and as a fitted folder attends,
   and again under every attention policy
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from blockwright.anatomy import Skeleton
from blockwright.attention.huggingface import use_attention
from blockwright.attention.one_query import use_grouped_queries
from blockwright.errors import ProfileError
from blockwright.machine.description import describe_machine, last_cache_bytes
from blockwright.machine.fixed import STEPS, Fixed, Step, time_fixed
from blockwright.machine.hollow import Asked, Hollow, hollow_model
from blockwright.machine.kernels import ROUNDS, Bench, Clock, time_work
from blockwright.machine.memory import longest_context
from blockwright.machine.works import LOOKUP, Work, bare_works
from blockwright.progress import Progress
from blockwright.types import (
    PROFILE_VERSION,
    PackedFormat,
    Phase,
    Profile,
    Site,
    Workload,
    policy_work,
)

SWEEP = 2
"""Bytes between two uses of a weight, in sizes of the last cache."""

Resized = Sequence[tuple[Site, tuple[int, int]]]
"""Sites that may have another shape (out, in) as well."""


@dataclass(frozen=True)
class Usage:
    """How a work is used in one forward: mean over its sites."""

    calls: float
    tokens: int
    """Per call."""


def measure_profile(
    skeleton: Skeleton,
    formats: Sequence[PackedFormat],
    workload: Workload,
    *,
    model: str,
    progress: Progress,
    device: str = "cpu",
    clock: Clock | None = None,
    rounds: int = ROUNDS,
    resized: Resized = (),
    policies: Sequence[str] = (),
) -> Profile:
    """Time every distinct product of a model in every format, and everything else of a forward.

    ``clock`` gives nanoseconds; ``resized``: sites that may have another shape; ``policies``:
    attention policies on offer.  Raises ``ProfileError`` for a workload the model cannot do.
    """
    check_workload(skeleton, workload)
    clock = clock or device_clock(device)
    hollow = hollow_model(skeleton, device)
    usage = count_usage(hollow, workload)
    usage |= {work: usage[whole] for work, whole in _resized_works(resized)}
    dtype = next(iter(skeleton.parameters.values())).dtype
    sweep = SWEEP * last_cache_bytes()
    used = sum(tensor.nbytes for tensor in skeleton.parameters.values())
    bench = Bench(dtype, device, min(sweep, used), clock, rounds)
    times: dict[str, int] = {}
    untimed: dict[str, str] = {}
    with progress.stage("time products", len(usage), "products") as stage, torch.inference_mode():
        for work, use in usage.items():
            found = time_work(bench, work, max(use.tokens, 1), formats)
            times |= {work.named(n): round(use.calls * ns) for n, ns in found.ns.items()}
            untimed |= {work.named(name): reason for name, reason in found.untimed.items()}
            stage.advance()
    with progress.stage("time everything else"):
        fixed, extra_ns = _fixed_and_extra(hollow, workload, clock, min(sweep, used))
    with progress.stage("time attention", len(policies), "policies") as stage:
        for policy in policies:
            use_attention(hollow.model, policy)
            sparse = time_fixed(hollow, workload, clock, min(sweep, used))
            for block, ns in sparse.blocks_ns.items():
                times[policy_work(policy, block)] = ns - fixed.blocks_ns[block]
            use_attention(hollow.model, "keep")
            stage.advance()
    return Profile(
        machine=describe_machine(device),
        model=model,
        dtype=str(dtype).removeprefix("torch."),
        workload=workload,
        outside_ns=fixed.outside_ns,
        original_extra_ns=extra_ns,
        blocks_ns=fixed.blocks_ns,
        work_ns=times,
        untimed=untimed,
    )


def _fixed_and_extra(
    hollow: Hollow, workload: Workload, clock: Clock, stream_bytes: int
) -> tuple[Fixed, int]:
    """With the attention of a fitted folder, and how much longer the original's takes."""
    original = time_fixed(hollow, workload, clock, stream_bytes)
    if workload.phase is not Phase.DECODE or not use_grouped_queries(hollow.model):
        return original, 0
    fixed = time_fixed(hollow, workload, clock, stream_bytes)
    return fixed, max(0, original.total_ns - fixed.total_ns)


def _resized_works(resized: Resized) -> list[tuple[Work, Work]]:
    """Works of other shapes, with those that they stand for."""
    pairs = [
        pair
        for site, shape in resized
        for pair in zip(bare_works(replace(site, shape=shape)), bare_works(site), strict=True)
    ]
    return sorted(set(pairs))


def profile_inputs(
    skeleton: Skeleton,
    formats: Iterable[PackedFormat],
    workload: Workload,
    device: str,
    resized: Resized = (),
    policies: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything that a profile is a measurement of: its key in a library is made from this."""
    sites = [*skeleton.sites, *(replace(site, shape=shape) for site, shape in resized)]
    works = sorted({str(work) for site in sites for work in bare_works(site)})
    config = {k: v for k, v in skeleton.config.to_diff_dict().items() if not k.startswith("_")}
    return {
        "version": PROFILE_VERSION,
        "machine": describe_machine(device),
        "config": repr(sorted(config.items(), key=lambda item: item[0])),
        "works": works,
        "blocks": skeleton.num_blocks,
        "workload": workload.to_json(),
        "formats": sorted({format.name for format in formats}),
        **({"policies": list(policies)} if policies else {}),
    }


def check_workload(skeleton: Skeleton, workload: Workload) -> None:
    """Raise ``ProfileError`` for what the model cannot do."""
    kind = skeleton.config.model_type
    if workload.phase is Phase.DECODE and skeleton.task != "causal-lm":
        raise ProfileError(f"{kind} does not write tokens; give --phase prefill")
    most = longest_context(skeleton)
    steps = STEPS + 2 if workload.phase is Phase.DECODE else 0
    if workload.context + steps > most:
        raise ProfileError(
            f"--context {workload.context}: {kind} has {most} positions; give at most"
            f" {most - steps}"
        )


@torch.inference_mode()
def count_usage(hollow: Hollow, workload: Workload) -> dict[Work, Usage]:
    """Calls and tokens of every work in one forward."""
    device = next(hollow.model.parameters()).device
    step = Step(hollow, workload, device)
    for answer in hollow.stand_ins.values():
        answer.products, answer.lookups = Asked(), Asked()
    step()
    seen: dict[Work, list[Asked]] = defaultdict(list)
    for site in hollow.skeleton.sites:
        for work in bare_works(site):
            answer = hollow.stand_ins[site.id]
            looks_up = work.operation == LOOKUP
            seen[work].append(answer.lookups if looks_up else answer.products)
    return {work: _mean_usage(counts) for work, counts in sorted(seen.items())}


def _mean_usage(counts: Sequence[Asked]) -> Usage:
    calls = sum(asked.calls for asked in counts)
    tokens = sum(asked.tokens for asked in counts)
    return Usage(calls / len(counts), round(tokens / calls) if calls else 0)


def device_clock(device: str) -> Clock:
    """Nanoseconds, with all work of the device done."""
    if torch.device(device).type == "cpu":
        return time.perf_counter_ns

    def synchronized() -> int:
        torch.cuda.synchronize(device)
        return time.perf_counter_ns()

    return synchronized
