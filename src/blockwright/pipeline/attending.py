"""Attention policies as candidates: every block's attention under every policy on offer, by its
measured loss.

On offer where the user names them and the limit is on the speed of reading a prompt: what a policy
saves is timed with the machine profile at the limit's context, and what it costs is measured on
calibration sequences of at least that length.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from blockwright.attention.spelling import text_of
from blockwright.errors import AttentionError, PlanError
from blockwright.evaluate import FinalHidden
from blockwright.pipeline.measuring import (
    attending,
    measure_change,
    planned_caches,
    planned_policies,
)
from blockwright.pipeline.opening import Run
from blockwright.registry import policy_named
from blockwright.types import KEEP, Choice, Option, Plan, policy_site, policy_work


@dataclass(frozen=True)
class PolicyOffer:
    """The policies on offer for one block's attention."""

    site: str
    block: str
    policies: tuple[str, ...]


def policies_on_offer(run: Run) -> list[PolicyOffer]:
    """Blocks with the policies that may stand there; with a plan file those that it names."""
    if run.skeleton.task != "causal-lm":
        return []
    path = run.skeleton.block_path
    blocks = [f"{path}.{index}" for index in range(run.skeleton.num_blocks)]
    if run.edited is not None:
        named = planned_policies(run.edited)
        if named and planned_caches(run.edited):
            raise PlanError(
                "the plan has KV caches, measured token by token, and attention policies, measured"
                " as texts are read; keep one kind"
            )
        asked = tuple(sorted(set(named.values())))
        return [
            PolicyOffer(policy_site(block), block, asked)
            for block in blocks
            if policy_site(block) in run.edited.choices
        ]
    if not run.request.attention or refused_policies(run):
        return []
    asked = policies_asked(run)
    return [PolicyOffer(policy_site(block), block, asked) for block in blocks]


def policies_asked(run: Run) -> tuple[str, ...]:
    """The policies that the request names, spelled alike."""
    return tuple(dict.fromkeys(text_of(policy_named(text)) for text in run.request.attention))


def refused_policies(run: Run) -> str:
    """Why no policy is on offer; empty where they are."""
    budget, length = run.request.budget, run.texts.calibration.sequence_length
    if run.skeleton.task != "causal-lm":
        return "attention policies need a model with a language head"
    if budget is not None and length < budget.context:
        return (
            f"calibration sequences of {length} tokens are shorter than the context of"
            f" {budget.context}; give --sequence-length {budget.context}, or a shorter --context"
        )
    try:
        attending(run.skeleton, {0: "dense"})
    except AttentionError as error:
        return str(error)
    return ""


def unavailable_policies(run: Run) -> dict[str, str]:
    """``attention POLICY`` -> why it is not on offer."""
    if run.edited is not None or not run.request.attention:
        return {}
    reason = refused_policies(run)
    return {f"attention {text}": reason for text in policies_asked(run)} if reason else {}


def policy_options(run: Run, offer: PolicyOffer, original: FinalHidden) -> list[Option]:
    """Visit all tiles in a block, or those of a policy: what that alone costs."""
    found = []
    for option in declared_policies(offer):
        choice = Choice(candidate=option.candidate, stored_bytes=0, loss=0.0)
        kept = option.candidate == str(KEEP)
        loss = 0.0 if kept else measure_change(run, {offer.site: choice}, original)
        found.append(replace(option, loss=loss))
    return found


def declared_policies(offer: PolicyOffer) -> list[Option]:
    """The options of a block's attention, their losses unknown."""
    return [
        Option(
            site=offer.site,
            candidate=name,
            weights=0,
            stored_bytes=0,
            loss=0.0,
            resident_bytes=0,
            work=() if name == str(KEEP) else (policy_work(name, offer.block),),
        )
        for name in (str(KEEP), *offer.policies)
    ]


def policy_notes(plan: Plan) -> tuple[str, ...]:
    """What the user must know of the policies that a plan chose."""
    planned: Mapping[int, str] = planned_policies(plan)
    if not planned:
        return ()
    counted = Counter(planned.values())
    named = ", ".join(f"{policy} in {count} blocks" for policy, count in sorted(counted.items()))
    return (
        f"attention: {named}; loaded with Blockwright imported, the folder attends so"
        " (set_attn_implementation('sdpa') gives the model's own)",
    )
