"""``attn_implementation="blockwright_<policy>"`` on any transformers model.

    import blockwright.attention.huggingface as plug

    plug.register()
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="blockwright_xattention")
    plug.use_policies(model, "moba@block=64")                      # or with its options
    plug.use_policies(model, {0: "dense", 1: Moba(block=64)})      # or one policy per block

``use_policies`` writes the policies into the model's config, and ``attn_implementation=
"blockwright"`` is one function that reads there which one is its block's.

Masks travel as positions, not as Nq x Nk tables: a 4-D int64 tensor [B, 1, 1, 2 + Nq + Nk] holding
causality, window, and the position of every query and key (-1: none).  Four axes make transformers
hand it on unchanged.  Masks that are no plain causal, bidirectional or sliding-window rule travel
as the usual boolean table, and work too, at its cost.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from types import CodeType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    sdpa_mask,
    sliding_window_causal_mask_function,
    sliding_window_overlay,
)

from blockwright.attention.calling import attend
from blockwright.attention.layout import Layout
from blockwright.attention.one_query import NAME as GROUPED_QUERIES
from blockwright.attention.policy import Context, Policy
from blockwright.attention.spelling import policies_of, policy_of_spec, text_of
from blockwright.attention.watching import show
from blockwright.errors import AttentionError
from blockwright.registry import policy_named, policy_names

PREFIX = "blockwright"
HEADER = 2
"""Entries before the positions: causality (0 or 1) and window (0: none)."""
POLICIES = "blockwright_attention"
"""Field of a model's config: block -> its policy; blocks that are not named attend densely."""
_MEMORY: WeakKeyDictionary[nn.Module, dict[str, Tensor]] = WeakKeyDictionary()


def register() -> None:
    """Make transformers know ``blockwright`` (dense, or as ``use_policies`` said) and
    ``blockwright_<policy>`` for every policy."""
    AttentionInterface.register(PREFIX, dispatched_forward)
    AttentionMaskInterface.register(PREFIX, position_mask)
    for name in policy_names():
        AttentionInterface.register(f"{PREFIX}_{name}", partial(attention_forward, policy=name))
        AttentionMaskInterface.register(f"{PREFIX}_{name}", position_mask)


def use_policies(model: Any, policies: str | Policy | Mapping[int, str | Policy]) -> None:
    """Give all blocks a policy, or blocks their own by ``layer_idx``; the others attend densely.

    Raises ``AttentionError`` for a block that the model does not have, and for a model whose
    attention cannot be chosen.
    """
    register()
    blocks = {number for module in model.modules() if (number := _block_of(module)) is not None}
    chosen = policies if isinstance(policies, Mapping) else dict.fromkeys(blocks, policies)
    if unknown := sorted(set(chosen) - blocks):
        raise AttentionError(
            f"use_policies: no block {unknown[0]} in this model (it has {len(blocks)})"
        )
    written = {str(number): _canonical(chosen[number]) for number in sorted(chosen)}
    if not (blocks and model._can_set_attn_implementation()):
        raise AttentionError(
            f"{model.config.model_type}: its attention cannot be chosen block by block; use"
            " the model's own"
        )
    model.set_attn_implementation(PREFIX)
    for config in {id(config): config for config in _configs(model)}.values():
        setattr(config, POLICIES, written)


def use_attention(model: Any, attention: str | None) -> None:
    """A policy for every block, a JSON file with one per block, ``keep`` for the model's own
    attention; None: as the folder says.

    Raises ``AttentionError`` or ``CandidateError`` for a policy or an option that there is not.
    """
    check_attention(attention)
    if attention is None:
        if recorded := recorded_policies(model.config):
            use_policies(model, recorded)
    elif attention != "keep":
        use_policies(model, policies_of(attention))
    elif _is_ours(str(model.config._attn_implementation)):
        model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
        for config in _configs(model):
            vars(config).pop(POLICIES, None)


def _is_ours(implementation: str) -> bool:
    return implementation.startswith(PREFIX) and implementation != GROUPED_QUERIES


def check_attention(attention: str | None) -> None:
    """Raise ``AttentionError`` or ``CandidateError`` for what ``use_attention`` cannot take."""
    if attention not in (None, "keep"):
        found = policies_of(attention)
        for policy in [found] if isinstance(found, str) else found.values():
            policy_named(policy)


def attends_by_policy(model: Any) -> bool:
    """Whether ``use_policies`` holds for a model."""
    return bool(model.config._attn_implementation == PREFIX)


def recorded_policies(config: Any) -> dict[int, str]:
    """Block -> policy, as a fitted folder's config says; empty for other models."""
    quantization = getattr(config, "quantization_config", None) or {}
    given = quantization if isinstance(quantization, dict) else quantization.to_dict()
    if given.get("quant_method") != PREFIX:
        return {}
    return {int(block): policy_of_spec(s) for block, s in given.get("attention", {}).items()}


def dispatched_forward(module: nn.Module, *args: Any, **options: Any) -> tuple[Tensor, None]:
    """``attention_forward`` with the policy that the config names for the module's block."""
    if not hasattr(module, "config"):
        raise AttentionError(
            f"{PREFIX}: {type(module).__name__} does not hold its model's config; name one policy"
            f" for all blocks, e.g. attn_implementation='{PREFIX}_dense'"
        )
    written = getattr(module.config, POLICIES, None) or {}
    policy = written.get(str(_block_of(module)), "dense")
    return attention_forward(module, *args, policy=_parsed(policy), **options)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    policy: str | Policy,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    spans: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: output [B, Nq, H, Dv], no attention weights.

    ``spans``: of documents, see ``Context``; give it to the model's forward.
    """
    if dropout:
        raise AttentionError(f"{PREFIX}: attention dropout {dropout} is not possible; set it to 0")
    if position_bias is not None:
        raise AttentionError(f"{PREFIX}: attention with a learned position bias is not possible")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    layout = read_mask(attention_mask, query, key, causal=bool(causal))
    context = Context(
        layout=layout,
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        layer=_block_of(module),
        spans=spans,
        memory=_MEMORY.setdefault(module, {}),
    )
    done = attend(query, key, value, policy=policy, context=context, sinks=s_aux, logit_cap=softcap)
    show(query, key, value, done, context)
    return done.output.transpose(1, 2).contiguous(), None


def position_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    device: torch.device | str = "cpu",
    **rest: Any,
) -> Tensor:
    """transformers' mask function: positions where the rule is plain, else the boolean table.

    Positions count from the first real token of each text.
    """
    rule = _plain_rule(mask_function)
    if rule is None:
        rest |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        table: Tensor = sdpa_mask(
            batch_size,
            q_length,
            kv_length,
            q_offset,
            kv_offset,
            mask_function,
            attention_mask,
            device=device,
            **rest,
        )
        return table
    causal, window = rule
    queries = (torch.arange(q_length, device=device) + q_offset).expand(batch_size, -1)
    keys = (torch.arange(kv_length, device=device) + kv_offset).expand(batch_size, -1)
    if causal:  # slots of a static cache that nothing was written to yet
        keys = keys.masked_fill(keys > queries[:, -1:], -1)
    if attention_mask is not None:
        queries, keys = _without_padding(queries, keys, attention_mask.bool())
    header = torch.tensor([causal, window or 0], device=device).expand(batch_size, -1)
    return torch.cat([header, queries, keys], -1)[:, None, None]


def read_mask(mask: Tensor | None, query: Tensor, key: Tensor, *, causal: bool) -> Layout:
    """The layout behind whatever arrives as ``attention_mask``."""
    queries, keys = query.shape[2], key.shape[2]
    if mask is None:
        return Layout.plain(queries, keys, causal=causal and queries > 1, device=query.device)
    if mask.dtype == torch.int64:
        return _read_positions(mask, queries, keys)
    if mask.dtype != torch.bool:
        least = torch.finfo(mask.dtype).min
        if not bool(((mask == 0) | (mask <= least)).all()):
            raise AttentionError(f"{PREFIX}: attention masks that add a bias are not possible")
        mask = mask == 0
    mask = mask[..., :keys]
    layout = replace(Layout.plain(queries, keys, causal=False, device=query.device), allowed=mask)
    if not causal:
        return layout
    slots = torch.arange(1, keys + 1, device=query.device)
    last = (mask * slots).amax((1, 3)) - 1  # the last key that a query sees is its own
    return replace(layout, q_position=last[:, None], causal=True)


def _read_positions(mask: Tensor, queries: int, keys: int) -> Layout:
    if mask.shape[-1] != HEADER + queries + keys:
        raise AttentionError(
            f"{PREFIX}: a mask for {mask.shape[-1] - HEADER} tokens met {queries} queries and"
            f" {keys} keys: this model cuts masks itself; use attn_implementation='sdpa'"
        )
    row = mask[:, :, 0]
    causal, window = (int(x) for x in row[0, 0, :HEADER])
    return Layout(
        q_position=row[..., HEADER : HEADER + queries],
        k_position=row[..., HEADER + queries :],
        causal=bool(causal),
        window=window or None,
    )


def _without_padding(queries: Tensor, keys: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Positions from the first real token of each text on, -1 where there is none."""
    first = real.long().argmax(-1, keepdim=True)

    def shifted(position: Tensor) -> Tensor:
        inside = (position >= 0) & (position < real.shape[1])
        token = inside & real.gather(-1, position.clamp(0, real.shape[1] - 1))
        return torch.where(token, position - first, -1)

    return shifted(queries), shifted(keys)


def _plain_rule(mask_function: Callable[..., Any]) -> tuple[bool, int | None] | None:
    """Causality and window of a mask function that knows nothing else, or None."""
    if mask_function is causal_mask_function:
        return True, None
    if mask_function is bidirectional_mask_function:
        return False, None
    if _code(mask_function) is not _code(sliding_window_causal_mask_function(1)):
        return None
    members = inspect.getclosurevars(mask_function).nonlocals["mask_functions"]
    if len(members) != 2 or _code(members[0]) is not _code(sliding_window_overlay(1)):
        return None
    if members[1] is not causal_mask_function:
        return None
    return True, int(inspect.getclosurevars(members[0]).nonlocals["sliding_window"])


def _code(function: Callable[..., Any]) -> CodeType | None:
    """What two closures of one definition share."""
    return getattr(function, "__code__", None)


def _block_of(module: nn.Module) -> int | None:
    number = getattr(module, "layer_idx", None)
    return number if isinstance(number, int) else None


def _configs(model: Any) -> list[Any]:
    """Every config that an attention module may hold."""
    return [model.config, *(m.config for m in model.modules() if hasattr(m, "config"))]


def _canonical(policy: str | Policy) -> str:
    return text_of(policy_named(policy) if isinstance(policy, str) else policy)


_parsed = cache(policy_named)
