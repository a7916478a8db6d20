"""Every plan that was measured, once, under a name of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from blockwright.types import Plan, Quality
from blockwright.types.report import MeasuredPlan

Sites = tuple[tuple[str, str], ...]


def measured_plans(
    taken: Plan,
    uniform: Plan | None,
    tried: Iterable[Plan],
    taken_quality: Quality,
    uniform_quality: Quality | None,
) -> tuple[MeasuredPlan, ...]:
    """The plan that was taken first, then by what they lost on the selection text.

    ``tried`` are in the order of their measurements; ``taken`` and ``uniform`` may be among them.
    """
    known = {_identity(plan): plan for plan in (*tried, *([uniform] if uniform else []), taken)}
    plans = [plan for plan in known.values() if "selection_loss" in plan.measured]
    heldout = {_identity(taken): heldout_loss(taken_quality)}
    if uniform is not None and uniform_quality is not None:
        heldout.setdefault(_identity(uniform), heldout_loss(uniform_quality))
    found = [
        MeasuredPlan(
            name=name,
            taken=_identity(plan) == _identity(taken),
            uniform=plan.name.startswith("uniform "),
            bits_per_weight=plan.bits_per_weight,
            size_bytes=plan.size_bytes,
            predicted_loss=plan.loss,
            selection_loss=plan.measured["selection_loss"],
            heldout_loss=heldout.get(_identity(plan)),
        )
        for name, plan in zip(_names(plans), plans, strict=True)
    ]
    return tuple(sorted(found, key=lambda item: (not item.taken, item.selection_loss, item.name)))


def heldout_loss(quality: Quality) -> float | None:
    """KL divergence; the relative error of models without a language head."""
    return quality.kl_divergence if quality.kl_divergence is not None else quality.relative_error


def _names(plans: Sequence[Plan]) -> list[str]:
    """``plan 2, refined``: its number where there are several mixes, and what was done to it."""
    mixes: dict[str, list[Sites]] = {}
    for plan in plans:
        seen = mixes.setdefault(plan.name, [])
        if _candidates(plan) not in seen:
            seen.append(_candidates(plan))
    first: set[tuple[str, Sites]] = set()
    names = []
    for plan in plans:
        seen, own = mixes[plan.name], (plan.name, _candidates(plan))
        number = f" {seen.index(own[1]) + 1}" if len(seen) > 1 else ""
        done = ", healed" if plan.healed else ", refined" if own in first else ""
        first.add(own)
        names.append(f"{plan.name}{number}{done}")
    return names


def _candidates(plan: Plan) -> Sites:
    return tuple(sorted((site, choice.candidate) for site, choice in plan.choices.items()))


def _identity(plan: Plan) -> tuple[object, ...]:
    """What stands at every site."""
    keys = sorted((site, c.candidate, c.key) for site, c in plan.choices.items())
    return (tuple(keys), tuple(sorted(plan.healed.items())))
