"""How much of the loss each block carries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from blockwright.report.plan_map import decide
from blockwright.types import Plan, Problem, Site, SiteKind
from blockwright.types.report import NATS_PER_TOKEN, BlockImportance


def weigh_blocks(
    sites: Sequence[Site], plan: Plan, uniform: Plan | None, problem: Problem
) -> tuple[BlockImportance, ...]:
    """Shares of the predicted loss, and the measured loss of dropping a block where there is one.

    The uniform plan's shares say how sensitive the blocks are: the same candidate stands in all.
    """
    blocks = [site for site in sites if site.kind is SiteKind.BLOCK]
    own = _shares(sites, plan, problem)
    rival = _shares(sites, uniform, problem) if uniform is not None else None
    dropped = _drop_losses(problem)
    return tuple(
        BlockImportance(
            block=block.block or 0,
            share=own.get(block.block or 0, 0.0),
            uniform_share=rival.get(block.block or 0, 0.0) if rival is not None else None,
            drop_loss=dropped.get(block.id),
        )
        for block in blocks
    )


def _shares(sites: Sequence[Site], plan: Plan, problem: Problem) -> Mapping[int, float]:
    decided = decide(sites, plan, problem)
    losses: dict[int, float] = {}
    for site in sites:
        if site.kind is SiteKind.LINEAR and site.block is not None and site.id in decided:
            losses[site.block] = losses.get(site.block, 0.0) + decided[site.id].loss
    total = sum(losses.values())
    return {block: loss / total if total > 0 else 0.0 for block, loss in losses.items()}


def _drop_losses(problem: Problem) -> dict[str, float]:
    """Block site -> KL of dropping it; a plan file's drops come without one (loss 0)."""
    if problem.loss_unit != NATS_PER_TOKEN:
        return {}
    return {
        option.site: option.loss
        for option in problem.options
        if option.candidate == "drop" and option.loss > 0
    }
