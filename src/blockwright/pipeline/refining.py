"""Refinement of a plan, kept only when the selection text says that it is better."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from blockwright.capture import BlockObserver
from blockwright.library import variant_key
from blockwright.library.build import WantedVariant, needs_of, variant_inputs
from blockwright.pipeline.building import build_site
from blockwright.pipeline.choosing import Chosen, best_measured
from blockwright.pipeline.measuring import dense_weight, kept_blocks, measure_on_selection
from blockwright.pipeline.opening import Run, by_id, digest_of
from blockwright.refine import RefinedSite, refine_blocks
from blockwright.types import Candidate, Choice, Plan, Site, SiteKind, Statistics


def refine_plans(run: Run, chosen: Chosen) -> Chosen:
    """The plan and its uniform rival refined; the better of the two on the selection text."""
    plan = refine_plan(run, chosen.plan)
    uniform = chosen.uniform
    if uniform is not None:
        uniform = plan if uniform is chosen.plan else refine_plan(run, uniform)
    rivals = [rival for rival in (plan, uniform) if rival is not None]
    return Chosen(best_measured(rivals), uniform, (*chosen.measured, *rivals))


def refine_plan(run: Run, plan: Plan) -> Plan:
    """The plan with its linear sites solved again behind their compressed prefix, if that measures
    better.
    """
    refined = solve_sequentially(run, plan)
    if refined.choices == plan.choices:
        return plan
    measured = measure_on_selection(run, refined)
    better = measured.measured["selection_loss"] < plan.measured["selection_loss"]
    return measured if better else plan


def solve_sequentially(run: Run, plan: Plan) -> Plan:
    """The plan with refined variants in place of those whose methods read statistics."""
    sites = by_id(run.skeleton)
    keys = refined_variants(run, plan)
    chosen = {
        site: RefinedSite(sites[site], needs_of([Candidate.parse(plan.choices[site].candidate)]))
        for site in keys
    }
    if not chosen:
        return plan

    def solve(site: Site, W_OI: Tensor, statistics: Statistics | None) -> Tensor:
        item = keys[site.id]
        if run.library.lookup(item.key) is None:
            build_site(run, site, W_OI, statistics, [item])
        return dense_weight(run, site, standing_key(run, plan, item.key, site.id))

    stream = run.stream(dtype=run.capture_dtype, blocks=kept_blocks(run, plan))
    folder = run.library.work_folder("refine-" + digest_of([plan_digest(plan), run.surroundings]))
    with run.progress.stage(f"refine {plan.name}", len(stream.blocks), "blocks") as stage:
        refine_blocks(
            stream, run.calibration_inputs, folder, chosen, BlockObserver, solve, stage.advance
        )
    return replace(
        plan,
        choices={site: _refined_choice(run, plan, site, keys.get(site)) for site in plan.choices},
    )


def refined_variants(run: Run, plan: Plan) -> dict[str, WantedVariant]:
    """Refined variants by site: what stands in front of them is the plan itself."""
    sites = by_id(run.skeleton)
    prefix = plan_digest(plan)
    keys: dict[str, WantedVariant] = {}
    for name, choice in plan.choices.items():
        site = sites[name]
        if not choice.key or site.kind is not SiteKind.LINEAR:
            continue
        candidate = Candidate.parse(choice.candidate)
        inputs = variant_inputs(
            source=run.original.weight_digest(site),
            candidate=candidate,
            statistics=f"{run.statistics_digest}/refined-in/{prefix}/{name}",
            surroundings=run.surroundings,
        )
        keys[name] = WantedVariant(candidate, variant_key(inputs), inputs)
    return keys


def standing_key(run: Run, plan: Plan, refined: str, site: str) -> str:
    """The refined variant, or the plan's own where refining failed (an expert no token reaches
    now).
    """
    record = run.library.lookup(refined)
    return refined if record is not None and record.available else plan.choices[site].key


def plan_digest(plan: Plan) -> str:
    """Digest of what stands where."""
    return digest_of(sorted((site, c.candidate, c.key) for site, c in plan.choices.items()))


def _refined_choice(run: Run, plan: Plan, site: str, item: WantedVariant | None) -> Choice:
    choice = plan.choices[site]
    return choice if item is None else replace(choice, key=standing_key(run, plan, item.key, site))
