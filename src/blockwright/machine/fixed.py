"""Times everything of a forward that is no site: blocks without their products, and what is around
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from blockwright.machine.hollow import Hollow
from blockwright.machine.kernels import Clock
from blockwright.stream import fill_cache
from blockwright.types import Phase, Workload

STEPS = 11
"""Forwards that are counted; a first one is not."""


@dataclass(frozen=True)
class Fixed:
    """Nanoseconds of one forward of a hollow model."""

    outside_ns: int
    blocks_ns: Mapping[str, int]
    """Block (site id) -> least time."""

    @property
    def total_ns(self) -> int:
        return self.outside_ns + sum(self.blocks_ns.values())


@torch.inference_mode()
def time_fixed(hollow: Hollow, workload: Workload, clock: Clock, stream_bytes: int) -> Fixed:
    """Every block, and every span between blocks, by its least time.

    Before every forward the caches are swept, as the weights between two uses would.
    """
    skeleton = hollow.skeleton
    device = next(hollow.model.parameters()).device
    marks: list[int] = []
    blocks = hollow.model.get_submodule(skeleton.block_path)
    handles = [
        handle
        for block in blocks
        for handle in (
            block.register_forward_pre_hook(lambda *_: marks.append(clock())),
            block.register_forward_hook(lambda *_: marks.append(clock())),
        )
    ]
    step, sweep = Step(hollow, workload, device), torch.zeros(stream_bytes, dtype=torch.int8)
    least: list[int] = []
    for turn in range(STEPS + 1):
        sweep.fill_(turn)
        marks.clear()
        began = clock()
        step()
        looks = [began, *marks, clock()]
        spans = [after - before for before, after in pairwise(looks)]
        least = spans if turn < 2 else [min(pair) for pair in zip(spans, least, strict=True)]
    for handle in handles:
        handle.remove()
    names = [f"{skeleton.block_path}.{index}" for index in range(len(blocks))]
    return Fixed(sum(least[::2]), dict(zip(names, least[1::2], strict=True)))


class Step:
    """One forward of a workload, again and again."""

    def __init__(self, hollow: Hollow, workload: Workload, device: torch.device) -> None:
        self._hollow = hollow
        causal = hollow.skeleton.task == "causal-lm"
        tokens = 1 if workload.phase is Phase.DECODE else workload.context
        self._ids: Tensor = torch.zeros(workload.batch, tokens, dtype=torch.long, device=device)
        self._options: dict[str, Any] = {"use_cache": True} if causal else {}
        if workload.phase is Phase.DECODE:
            cache = hollow.forward(self._ids, **self._options).past_key_values
            fill_cache(cache, workload.context)
            self._options["past_key_values"] = cache

    def __call__(self) -> None:
        self._hollow.forward(self._ids, **self._options)
