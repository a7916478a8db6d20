"""One attention call: a policy chooses tiles, an engine attends over them."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Protocol

import torch
from torch import Tensor

from blockwright.attention.engines import cpu
from blockwright.attention.engines.products import Product, product
from blockwright.attention.heads import spread, take_rows
from blockwright.attention.layout import Layout
from blockwright.attention.partial import Partial, merge, with_sink
from blockwright.attention.policies.dense import Dense
from blockwright.attention.policy import Choice, Context, Policy
from blockwright.attention.sage import PRECISIONS
from blockwright.attention.selection import Selection
from blockwright.attention.stopping import attend_until
from blockwright.errors import AttentionError
from blockwright.registry import policy_named


@dataclass(frozen=True, kw_only=True)
class Attended:
    """A result and how it came about."""

    output: Tensor
    """[B, H, Nq, Dv] in the inputs' dtype."""
    lse: Tensor
    """fp32 [B, H, Nq]; -inf where a row sees nothing."""
    choice: Choice
    """What was visited."""


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    policy: str | Policy = "dense",
    causal: bool = True,
    padding: Tensor | None = None,
    window: int | None = None,
    scale: float | None = None,
    precision: str = "native",
    engine: str = "cpu",
) -> Tensor:
    """Attention of q [B, H, Nq, D] over k [B, Hkv, Nk, D] and v [B, Hkv, Nk, Dv]: [B, H, Nq, Dv].

    ``padding`` is bool [B, Nk], False where there is no token; ``scale`` is 1/sqrt(D) by default.
    Queries are the last Nq tokens.  ``policy`` is a name, or a policy with its own
    hyperparameters; see ``blockwright.attention.policies``.  Key/value heads are shared by
    H / Hkv query heads each.  ``precision`` is native, sage4 or sage8 (simulated).  ``engine`` is
    cpu (plain PyTorch, on any device), flex or triton (on GPUs), or ref (plain, for tests).

    Raises ``AttentionError`` for shapes that do not fit and for a policy that cannot do what is
    asked.
    """
    check_shapes(q, k, v)
    layout = padded_layout(q, k, padding, causal=causal, window=window)
    context = Context(layout=layout, scale=default_scale(q) if scale is None else scale)
    if precision not in PRECISIONS:
        raise AttentionError(f"unknown precision {precision!r} (known: {', '.join(PRECISIONS)})")
    multiply = PRECISIONS[precision]
    done = attend(q, k, v, policy=policy, context=context, engine=engine, multiply=multiply)
    return done.output


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    policy: str | Policy,
    context: Context,
    engine: str = "cpu",
    sinks: Tensor | None = None,
    logit_cap: float | None = None,
    multiply: Product | None = None,
) -> Attended:
    """Attention with everything that surrounds it said; the result with its log-sum-exp.

    ``sinks`` [H] are logits of one more key per head, of value zero; scores become
    ``logit_cap * tanh(score / logit_cap)``; ``multiply`` computes the tiles in place of the
    engine's own product.
    """
    policy = policy_named(policy) if isinstance(policy, str) else policy
    policy = _able(policy, q, context)
    with torch.no_grad():
        choice = policy.choose(q, k, v, context)
    if multiply is not None:
        choice = replace(choice, multiply=multiply)
    part, selection = compute(q, k, v, choice, context, engine=engine, logit_cap=logit_cap)
    choice = replace(choice, selection=selection)
    part = policy.finish(part, q, k, v, choice, context)
    if sinks is not None:
        part = with_sink(part, sinks)
    return Attended(output=part.output, lse=part.lse, choice=choice)


class Engine(Protocol):
    """``cpu.attend`` without what only it can do."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        selection: Selection | None,
        layout: Layout,
        *,
        scale: float,
        logit_cap: float | None = None,
    ) -> Partial: ...


ENGINES = {name: name for name in ("cpu", "ref", "flex")} | {"triton": "triton_tiles"}
"""Name -> file; all but ``cpu`` are imported when first asked for."""


def engine_named(name: str) -> Engine:
    """The ``attend`` of an engine; raises ``AttentionError`` with the nearest name."""
    if name not in ENGINES:
        close = difflib.get_close_matches(name, ENGINES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise AttentionError(f"unknown engine {name!r}{hint} (known: {', '.join(ENGINES)})")
    found: Engine = import_module(f"blockwright.attention.engines.{ENGINES[name]}").attend
    return found


def compute(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    choice: Choice,
    context: Context,
    *,
    engine: str = "cpu",
    logit_cap: float | None = None,
) -> tuple[Partial, Selection | None]:
    """Attend as chosen: the result in the inputs' order, and what was visited."""
    layout = choice.layout or context.layout
    scale, selection = context.scale, choice.selection
    if engine == "cpu":  # gathers keys and values from where they are
        q = _taken(q, layout.q_order)
    else:
        q, k, v = arranged(q, k, v, layout)

    def over(selection: Selection | None) -> Partial:
        if engine == "cpu":
            multiply, order = choice.multiply or product, layout.k_order
            return cpu.attend(
                *(q, k, v, selection, layout),
                scale=scale,
                logit_cap=logit_cap,
                multiply=multiply,
                k_order=order,
            )
        return engine_named(engine)(q, k, v, selection, layout, scale=scale, logit_cap=logit_cap)

    if selection is not None and choice.stop is not None:
        part, selection = attend_until(over, _per_head(selection, q), layout, choice.stop)
    else:
        part = over(selection)
    far = [cpu.attend_far(q, field, layout, scale) for field in choice.far]
    return _in_token_order(merge([part, *far]), layout), selection


def arranged(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    """The tensors in slot order."""
    return _taken(q, layout.q_order), _taken(k, layout.k_order), _taken(v, layout.k_order)


def _taken(x: Tensor, order: Tensor | None) -> Tensor:
    return x if order is None else take_rows(x, order)


def padded_layout(
    q: Tensor, k: Tensor, padding: Tensor | None, *, causal: bool, window: int | None = None
) -> Layout:
    """Positions count real tokens, so that padding on either side changes nothing.

    ``padding`` is bool [B, Nk], True for real tokens.
    """
    queries, keys = q.shape[2], k.shape[2]
    layout = Layout.plain(queries, keys, causal=causal, window=window, device=q.device)
    if padding is None or bool(padding.all()):
        return layout
    position = (padding.long().cumsum(-1) - 1).masked_fill(~padding, -1)[:, None]
    return replace(layout, q_position=position[..., keys - queries :], k_position=position)


def check_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raises ``AttentionError`` naming the first thing that does not fit."""
    shapes = f"got q {[*q.shape]}, k {[*k.shape]}, v {[*v.shape]}"
    if not q.ndim == k.ndim == v.ndim == 4:
        raise AttentionError(f"attention: {shapes}; each needs 4 axes: batch, heads, tokens, width")
    if k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0]:
        raise AttentionError(f"attention: {shapes}; k and v must agree in batch, heads and tokens")
    if q.shape[3] != k.shape[3]:
        raise AttentionError(f"attention: {shapes}; q and k must be equally wide")
    if q.shape[1] % k.shape[1]:
        raise AttentionError(f"attention: {shapes}; heads of k must divide those of q")
    if q.shape[2] > k.shape[2]:
        raise AttentionError(f"attention: {shapes}; there are more queries than keys")


def default_scale(q: Tensor) -> float:
    """1 / sqrt(D)"""
    return 1 / math.sqrt(q.shape[-1])


def _able(policy: Policy, q: Tensor, context: Context) -> Policy:
    """The policy, or dense where it leaves single queries to it.

    Raises ``AttentionError`` when the policy does not know this direction.
    """
    wanted = "causal" if context.layout.causal else "bidirectional"
    if not getattr(policy, wanted):
        name = type(policy).__module__.rpartition(".")[2]
        raise AttentionError(f"attention: policy {name} is not for {wanted} attention")
    return Dense() if q.shape[2] == 1 and not policy.decode else policy


def _per_head(selection: Selection, q: Tensor) -> Selection:
    batch, heads = q.shape[:2]
    index = spread(selection.index, heads).expand(batch, -1, -1, -1)
    count = spread(selection.count, heads).expand(batch, -1, -1)
    return replace(selection, index=index, count=count)


def _in_token_order(part: Partial, layout: Layout) -> Partial:
    if layout.q_order is None:
        return part
    order = layout.q_order.argsort(-1)
    return Partial(
        output=torch.take_along_dim(part.output, order[..., None], 2),
        lse=torch.take_along_dim(part.lse, order, 2),
    )
