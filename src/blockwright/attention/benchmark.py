"""One policy against fused dense attention on planted data: what it keeps and what it costs."""

from __future__ import annotations

import ctypes
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from blockwright.attention.budget import meet_density, name_of
from blockwright.attention.calling import Attended, attend
from blockwright.attention.layout import Layout
from blockwright.attention.metrics import density, mass_recall, output_error
from blockwright.attention.planted import WIDTH, plant, preset_named
from blockwright.attention.policy import Context, Policy
from blockwright.errors import AttentionError

CLEAR_REFS = Path("/proc/self/clear_refs")
RECALL_ROWS = 2048
"""Query rows on which recall is measured."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is run."""

    tokens: int
    data: str = "mixed"
    heads: int = 4
    kv_heads: int = 4
    dtype: str = "bfloat16"
    seed: int = 0
    threads: int | None = None
    repeats: int = 5
    causal: bool = True

    def __post_init__(self) -> None:
        preset_named(self.data)
        if self.heads % self.kv_heads:
            raise AttentionError(
                f"bench: {self.kv_heads} key/value heads do not divide {self.heads} heads"
            )


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was found; seconds are medians, taken in turn with dense attention."""

    policy: str
    options: dict[str, Any]
    setting: Setting
    density: float
    """Visited tiles over visible ones."""
    mass_recall: float
    output_error: float
    seconds: float
    """Choosing included."""
    dense_seconds: float
    ratio: float
    peak_bytes: int | None
    """Inputs, and what one call takes beyond them, in a process of its own; None where the system
    cannot tell (it needs Linux)."""
    dense_peak_bytes: int | None


def bench(policy: Policy, setting: Setting, *, target: float | None = None) -> Figures:
    """Measure a policy; ``target`` moves its budget to that density first.

    One that is not for causal attention is measured on bidirectional attention.
    """
    case = Case.made(replace(setting, causal=policy.causal))
    return case.measure([policy if target is None else case.meet(policy, target)])[0]


@dataclass(frozen=True, kw_only=True)
class Case:
    """The planted tensors of a setting, and what policies do on them."""

    setting: Setting
    q: Tensor
    k: Tensor
    v: Tensor
    context: Context

    @classmethod
    def made(cls, setting: Setting) -> Case:
        """Also sets the number of threads."""
        if setting.threads is not None:
            torch.set_num_threads(setting.threads)
        q, k, v = made_inputs(setting)
        return cls(setting=setting, q=q, k=k, v=v, context=made_context(setting))

    def meet(self, policy: Policy, target: float) -> Policy:
        """The policy at its greatest budget of at most this density; raises ``AttentionError``
        when even the least is more."""
        self._check(policy)
        return meet_density(policy, target, self.setting.tokens, self.density)[0]

    def density(self, policy: Policy) -> float:
        """Visited tiles over visible ones."""
        return density(policy.choose(self.q, self.k, self.v, self.context), self.context)

    def time(self, policies: Sequence[Policy], repeats: int) -> tuple[float, list[float]]:
        """Median seconds of dense attention and of every policy, all run in turn."""
        runs: list[Callable[[], object]] = [self.dense]
        runs += [partial(self.attend, policy) for policy in policies]
        dense, *seconds = _in_turn(runs, repeats)
        return dense, seconds

    def dense(self) -> Tensor:
        """Fused dense attention."""
        return fused_dense(self.q, self.k, self.v, causal=self.setting.causal)

    def attend(self, policy: Policy) -> Attended:
        """One call, choosing included."""
        return attend(self.q, self.k, self.v, policy=policy, context=self.context)

    def measure(self, policies: Sequence[Policy]) -> list[Figures]:
        """All figures, every policy beside the same runs of dense attention."""
        for policy in policies:
            self._check(policy)
        dense_seconds, taken = self.time(policies, self.setting.repeats)
        dense_peak = _peak_bytes(None, self.setting)
        output = self.dense()
        found = []
        for policy, seconds in zip(policies, taken, strict=True):
            done = self.attend(policy)
            kept = mass_recall(self.q, self.k, done.choice, self.context, rows=RECALL_ROWS)
            figures = Figures(
                policy=name_of(policy),
                options=asdict(policy),  # type: ignore[call-overload]
                setting=self.setting,
                density=density(done.choice, self.context),
                mass_recall=kept,
                output_error=output_error(done.output, output),
                seconds=seconds,
                dense_seconds=dense_seconds,
                ratio=seconds / dense_seconds,
                peak_bytes=_peak_bytes(policy, self.setting),
                dense_peak_bytes=dense_peak,
            )
            found.append(figures)
        return found

    def _check(self, policy: Policy) -> None:
        if not (policy.causal if self.setting.causal else policy.bidirectional):
            kind = "causal" if self.setting.causal else "bidirectional"
            raise AttentionError(f"bench: policy {name_of(policy)} is not for {kind} attention")


def made_inputs(setting: Setting) -> tuple[Tensor, Tensor, Tensor]:
    """Planted q [1, H, N, 64], k and v [1, Hkv, N, 64]."""
    data = plant(preset_named(setting.data), setting.tokens, heads=setting.heads, seed=setting.seed)
    dtype = getattr(torch, setting.dtype)
    kept = slice(None, None, setting.heads // setting.kv_heads)
    return data.q.to(dtype), data.k[:, kept].to(dtype), data.v[:, kept].to(dtype)


def made_context(setting: Setting) -> Context:
    """No padding."""
    layout = Layout.plain(setting.tokens, setting.tokens, causal=setting.causal)
    return Context(layout=layout, scale=WIDTH**-0.5, seed=setting.seed)


def fused_dense(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = True) -> Tensor:
    """PyTorch's fused attention."""
    shared = q.shape[1] != k.shape[1]
    return scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=shared)


def _in_turn(runs: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median seconds of each, run alternately after one unmeasured round."""
    taken: list[list[float]] = [[] for _ in runs]
    for number in range(repeats + 1):
        for run, seconds in zip(runs, taken, strict=True):
            began = time.perf_counter()
            run()
            if number:
                seconds.append(time.perf_counter() - began)
    return [statistics.median(seconds) for seconds in taken]


def _peak_bytes(policy: Policy | None, setting: Setting) -> int | None:
    """Measured in a fresh process, so that nothing freed earlier hides what a call takes."""
    if not CLEAR_REFS.exists():
        return None
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure_peak, (policy, setting))


def _measure_peak(policy: Policy | None, setting: Setting) -> int:
    """Bytes of the inputs, and the growth of the process's peak over one call; None: dense."""
    if setting.threads is not None:
        torch.set_num_threads(setting.threads)
    inputs = made_inputs(setting)
    few = replace(setting, tokens=256)
    small = made_inputs(few)
    fused_dense(*small, causal=setting.causal)  # libraries load now, not in the measured call
    if policy is not None:
        attend(*small, policy=policy, context=made_context(few))
    own = sum(x.numel() * x.element_size() for x in inputs)
    _forget_peak()
    before = _peak_resident()
    if policy is None:
        fused_dense(*inputs, causal=setting.causal)
    else:
        attend(*inputs, policy=policy, context=made_context(setting))
    return own + _peak_resident() - before


def _forget_peak() -> None:
    """Give freed memory back, else the call would live in it unseen; Linux keeps the greatest
    resident size until told to start anew."""
    if hasattr(library := ctypes.CDLL(None), "malloc_trim"):  # glibc
        library.malloc_trim(0)
    CLEAR_REFS.write_text("5", encoding="ascii")


def _peak_resident() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
