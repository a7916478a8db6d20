"""Refinement of a plan, kept only when the selection text says that it is better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from blockwright.capture import BlockObserver
from blockwright.library import variant_key
from blockwright.library.build import build_variant, needs_of, variant_inputs
from blockwright.pipeline.choosing import (
    dense_weight,
    kept_blocks,
    measure_plan,
    original_hidden,
    with_measured,
)
from blockwright.pipeline.opening import Run, by_id, digest_of
from blockwright.refine import RefinedSite, refine_blocks
from blockwright.types import Candidate, Choice, Plan, Site, SiteKind, Statistics


def refine_plan(run: Run, plan: Plan) -> Plan:
    """The plan with its linear sites solved again behind their compressed prefix, if that measures
    better.
    """
    refined = solve_sequentially(run, plan)
    if refined.choices == plan.choices:
        return plan
    original = original_hidden(run, run.texts.selection.ids, "selection")
    quality = measure_plan(run, refined, original, run.texts.selection.digest)
    measured = with_measured(refined, quality)
    better = measured.measured["selection_loss"] < plan.measured["selection_loss"]
    return measured if better else plan


def solve_sequentially(run: Run, plan: Plan) -> Plan:
    """The plan with refined variants in place of those whose methods read statistics."""
    sites = by_id(run.skeleton)
    keys = refined_keys(run, plan)
    chosen = {
        site: RefinedSite(sites[site], needs_of([Candidate.parse(plan.choices[site].candidate)]))
        for site in keys
    }
    if not chosen:
        return plan

    def solve(site: Site, W_OI: Tensor, statistics: Statistics | None) -> Tensor:
        key, inputs = keys[site.id]
        candidate = Candidate.parse(plan.choices[site.id].candidate)
        if run.library.lookup(key) is None:
            with run.library.building(key):
                built = build_variant(
                    site=site.id,
                    candidate=candidate,
                    W_OI=W_OI,
                    statistics=statistics,
                    key=key,
                    inputs=inputs,
                )
                run.library.store(built.record, built.tensors)
        return dense_weight(run, site, standing_key(run, plan, key, site.id))

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


def refined_keys(run: Run, plan: Plan) -> dict[str, tuple[str, Mapping[str, object]]]:
    """Library keys of the refined variants: what stands in front is the plan itself."""
    sites = by_id(run.skeleton)
    prefix = plan_digest(plan)
    keys: dict[str, tuple[str, Mapping[str, object]]] = {}
    for name, choice in plan.choices.items():
        site = sites[name]
        if not choice.key or site.kind is not SiteKind.LINEAR:
            continue
        inputs = variant_inputs(
            source=run.original.weight_digest(site),
            candidate=Candidate.parse(choice.candidate),
            statistics=f"{run.statistics_digest}/refined-in/{prefix}/{name}",
            surroundings=run.surroundings,
        )
        keys[name] = (variant_key(inputs), inputs)
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


def _refined_choice(
    run: Run, plan: Plan, site: str, key: tuple[str, Mapping[str, object]] | None
) -> Choice:
    choice = plan.choices[site]
    return choice if key is None else replace(choice, key=standing_key(run, plan, key[0], site))
