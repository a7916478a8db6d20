"""Moving a policy's one budget until its density is what was asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from blockwright.attention.policy import Knob, Policy
from blockwright.errors import AttentionError

STEPS = 20
"""Halvings of a budget's range."""


def with_budget(policy: Policy, value: float) -> Policy:
    """The policy with its budget set.  Raises ``AttentionError`` when it has none."""
    knob = knob_of(policy)
    changes: dict[str, Any] = {knob.name: round(value) if knob.whole else value}
    return replace(policy, **changes)  # type: ignore[type-var]


def with_most(policy: Policy, tokens: int) -> Policy:
    """The policy with the greatest budget: everything visible."""
    return with_budget(policy, _most(knob_of(policy), tokens))


def meet_density(
    policy: Policy, target: float, tokens: int, measure: Callable[[Policy], float]
) -> tuple[Policy, float]:
    """The greatest budget whose density is at most ``target``, and that density.

    ``measure`` gives the density of a policy; it must not fall as the budget grows.  Raises
    ``AttentionError`` when even the least budget visits more.
    """
    knob = knob_of(policy)
    low, high = float(knob.least), _most(knob, tokens)
    best = with_budget(policy, low)
    found = measure(best)
    if found > target:
        raise AttentionError(
            f"policy {name_of(policy)}: {knob.name}={knob.least:g} already visits"
            f" {found:.3f} of the tiles at {tokens} tokens, got density {target:g};"
            " ask for more, for more tokens, or for smaller blocks"
        )
    if (density := measure(with_budget(policy, high))) <= target:
        return with_budget(policy, high), density
    for _ in range(STEPS):
        if knob.whole and round(high) - round(low) <= 1:
            break
        middle = (round(low) + round(high)) // 2 if knob.whole else (low + high) / 2
        tried = with_budget(policy, middle)
        density = measure(tried)
        if density <= target:
            low, best, found = middle, tried, density
        else:
            high = middle
        if target - found < 0.005 * target:
            break
    return best, found


def knob_of(policy: Policy) -> Knob:
    """Raises ``AttentionError`` for a policy without a budget."""
    if policy.knob is None:
        raise AttentionError(f"policy {name_of(policy)} has no budget: its density is fixed")
    return policy.knob


def name_of(policy: Policy) -> str:
    """The name of the policy's file."""
    return type(policy).__module__.rpartition(".")[2]


def _most(knob: Knob, tokens: int) -> float:
    return float(tokens if knob.most is None else knob.most)


def option_names(policy: Policy) -> tuple[str, ...]:
    """Names of the hyperparameters."""
    return tuple(item.name for item in fields(policy))  # type: ignore[arg-type]
