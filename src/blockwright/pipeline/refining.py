"""Refinement of a plan, kept only when the selection text says that it is better."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from blockwright.capture import BlockObserver, PairedObserver, inputs_path, original_inputs
from blockwright.library.build import WantedVariant, needs_of
from blockwright.library.group import SCALE, fill_group
from blockwright.numerics.matching import matched_weight
from blockwright.pipeline.building import build_site, wanted_variant
from blockwright.pipeline.choosing import Chosen, best_measured
from blockwright.pipeline.grouping import group_tensors, groups_of, wanted_group_variant
from blockwright.pipeline.measuring import kept_blocks, measure_on_selection
from blockwright.pipeline.opening import Run, by_id, digest_of
from blockwright.pipeline.placing import Placement, dense_weight
from blockwright.pipeline.presets import MATCHING, REFINED
from blockwright.pipeline.sweeping import sweep_original
from blockwright.refine import NewObserver, RefinedSite, refine_blocks
from blockwright.stream import ActivationFile, Stem
from blockwright.types import (
    Candidate,
    Choice,
    Group,
    Plan,
    Site,
    SiteKind,
    Statistic,
    Statistics,
    parameter_name,
)


def refine_plans(run: Run, chosen: Chosen) -> Chosen:
    """The plan and its uniform rival refined; the better of the two on the selection text."""
    if not REFINED[run.request.preset]:
        return chosen
    plan = refine_plan(run, chosen.plan)
    uniform = chosen.uniform
    if uniform is not None:
        uniform = plan if uniform is chosen.plan else refine_plan(run, uniform)
    rivals = [rival for rival in (plan, uniform) if rival is not None]
    measured = (*chosen.measured, *rivals)
    return replace(chosen, plan=best_measured(rivals), uniform=uniform, measured=measured)


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
    """The plan with refined variants in place of those whose methods read statistics.

    Members of a chosen group are solved again with its fold as it is.
    """
    wanted = refined_variants(run, plan)
    if not wanted:
        return plan
    placement = Placement(run, replace(plan, healed={}))
    sites = by_id(run.skeleton)
    groups = placement.grouped
    decided = {name: groups[name].site.id if name in groups else name for name in placement.keys}
    chosen = {
        name: RefinedSite(sites[name], needs_of([wanted[decided[name]].candidate]))
        for name in decided
        if decided[name] in wanted
    }

    def solve(site: Site, W_OI: Tensor, statistics: Statistics | None) -> Tensor:
        item = wanted[decided[site.id]]
        group = groups.get(site.id)
        if run.library.lookup(item.key) is None:
            if group is None:
                build_site(run, site, target_weight(W_OI, statistics), statistics, [item])
            else:
                refine_group(run, group, placement.keys[site.id], statistics, item)
        return dense_weight(run, site, standing_key(run, plan, item.key, decided[site.id]))

    def walk(folder: Path) -> None:
        stream = run.stream(placement.source(), run.capture_dtype, kept_blocks(run, plan))
        with run.progress.stage(f"refine {plan.name}", len(stream.blocks), "blocks") as stage:
            refine_blocks(
                stream,
                run.calibration_inputs,
                folder,
                chosen,
                observers(run),
                solve,
                stage.advance,
            )

    aim = [plan_digest(plan), MATCHING[run.request.preset], run.surroundings]
    _walk_until_built(run, "refine-" + digest_of(aim), wanted.values(), walk)
    return replace(
        plan,
        choices={site: _refined_choice(run, plan, site, wanted.get(site)) for site in plan.choices},
    )


def _walk_until_built(
    run: Run, name: str, wanted: Collection[WantedVariant], walk: Callable[[Path], None]
) -> None:
    """Walk with a working folder until all variants are there, then remove it."""
    for _ in range(2):  # hidden states may outlive the entries: then from the first block again
        folder = run.library.work_folder(name)
        if any(run.library.lookup(item.key) is None for item in wanted):
            walk(folder)
        shutil.rmtree(folder)


def observers(run: Run) -> NewObserver:
    """Makes observers of real inputs; where the preset asks for it, beside the original's."""
    matched = MATCHING[run.request.preset]
    if not matched:
        return lambda sites, stem, needs: BlockObserver(needs)
    stream = sweep_original(run)
    folder = run.library.work_folder(run.statistics_digest)

    def observer(sites: Sequence[Site], stem: Stem, needs: Collection[Statistic]) -> BlockObserver:
        paired = [site for site in sites if site.expert is None]
        block = paired[0].block if paired else None
        if not needs or block is None:
            return BlockObserver(needs)
        source = ActivationFile(inputs_path(folder, block), stem.row_shape, stream.dtype)
        inputs = run.calibration_inputs
        return PairedObserver(needs, original_inputs(stream, paired, stem, source, inputs))

    return observer


def target_weight(W_OI: Tensor, statistics: Statistics | None) -> Tensor:
    """The original weight, or what gives its outputs best on the real inputs."""
    if statistics is None or statistics.cross_gram is None:
        return W_OI
    H_II, C_II = statistics.need(Statistic.INPUT_GRAM), statistics.cross_gram
    return matched_weight(W_OI, H_II, C_II)


def refine_group(
    run: Run, group: Group, key: str, statistics: Statistics | None, item: WantedVariant
) -> None:
    """Solve a group's members again under the fold of entry ``key``, on their real inputs x / t."""
    names = {SCALE, *map(parameter_name, group.parameters)}
    fold = {name: t for name, t in run.library.tensors(key).items() if name in names}
    with run.library.building(item.key):
        built = fill_group(group, group_tensors(run, group), fold, statistics, item)
        run.library.store(built.record, built.tensors, built.row_errors)


def refined_variants(run: Run, plan: Plan) -> dict[str, WantedVariant]:
    """Refined variants by site or group: what stands in front of them is the plan itself."""
    sites = by_id(run.skeleton)
    groups = {group.site.id: group for group in groups_of(run)}
    prefix = plan_digest(plan) + ("/matched" if MATCHING[run.request.preset] else "")
    found: dict[str, WantedVariant] = {}
    for name, choice in plan.choices.items():
        if not choice.key:
            continue
        candidate = Candidate.parse(choice.candidate)
        seen = f"{run.statistics_digest}/refined-in/{prefix}/{name}"
        if name in groups:
            found[name] = wanted_group_variant(run, groups[name], candidate, seen)
        elif name in sites and sites[name].kind is SiteKind.LINEAR:
            found[name] = wanted_variant(run, sites[name], candidate, seen)
    return found


def standing_key(run: Run, plan: Plan, refined: str, site: str) -> str:
    """The refined variant, or the plan's own where refining failed (an expert no token reaches
    now).
    """
    record = run.library.lookup(refined)
    if record is None:
        raise KeyError(f"library entry {refined} of {site} is gone")
    return refined if record.available else plan.choices[site].key


def plan_digest(plan: Plan) -> str:
    """Digest of what stands where."""
    return digest_of(sorted((site, c.candidate, c.key) for site, c in plan.choices.items()))


def _refined_choice(run: Run, plan: Plan, site: str, item: WantedVariant | None) -> Choice:
    choice = plan.choices[site]
    return choice if item is None else replace(choice, key=standing_key(run, plan, item.key, site))
