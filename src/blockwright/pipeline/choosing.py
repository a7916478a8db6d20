"""The plan: solved from predicted losses, then measured on the selection text against the uniform
plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from blockwright.evaluate import FinalHidden, measure, run_to_file
from blockwright.formats import format_from_spec
from blockwright.pipeline.healed import HealedTensors
from blockwright.pipeline.opening import Run, by_id, digest_of
from blockwright.plan import solve, uniform_plans
from blockwright.stream import Inputs, Stream, Substituted
from blockwright.types import PackedFormat, PackedLinear, Plan, Problem, Quality, Site, SiteKind


def choose_plan(run: Run, problem: Problem) -> tuple[Plan, Plan | None]:
    """The plan that measures best on the selection text, and the best uniform plan (if any fits).

    The uniform plan always competes: what is returned is never worse than it on that text.
    """
    if run.request.budget is None:
        raise ValueError("choose_plan needs a budget")
    plan = solve(problem, run.request.budget)
    uniform = next(iter(uniform_plans(problem, run.request.budget)), None)
    rivals = [plan] if uniform is None else [plan, uniform]
    with run.progress.stage("measure plans", len(rivals) + 1, "plans") as stage:
        original = original_hidden(run, run.texts.selection.ids, "selection")
        stage.advance()
        measured = []
        for rival in rivals:
            quality = measure_plan(run, rival, original, run.texts.selection.digest)
            measured.append(with_measured(rival, quality))
            stage.advance()
    best = min(measured, key=lambda rival: rival.measured["selection_loss"])
    return best, measured[1] if uniform is not None else None


def with_measured(plan: Plan, quality: Quality) -> Plan:
    """The plan with its figures on the selection text; ``selection_loss`` is what plans are ranked
    by.
    """
    figures = {name: value for name, value in asdict(quality).items() if value is not None}
    loss = quality.kl_divergence if quality.kl_divergence is not None else quality.relative_error
    if loss is None:
        raise ValueError("a plan is measured against the original")
    return replace(plan, measured={**figures, "selection_loss": loss})


def original_hidden(run: Run, ids: Tensor, name: str) -> FinalHidden:
    """The original's last hidden states on a text, computed once and kept in the library."""
    inputs = Inputs.of_tokens(ids)
    key = digest_of([run.original.fingerprint, ids.shape, ids.sum().item(), name, run.surroundings])
    folder = run.library.work_folder(f"{name}-{key}")
    return run_to_file(run.stream(), inputs, folder / "original.bin")


def measure_plan(run: Run, plan: Plan, original: FinalHidden, text: str) -> Quality:
    """Quality of a plan without writing it out; a plan measured before is looked up."""
    choices = {site: [choice.candidate, choice.key] for site, choice in plan.choices.items()}
    choices |= {f"healed {block}": [key] for block, key in plan.healed.items()}
    key = digest_of([run.original.fingerprint, choices, text, run.surroundings])
    known = run.library.result(key)
    if known is not None:
        return Quality(**known)
    target = original.file.path.with_name(f"{key}.bin")
    quality = measure(run_to_file(plan_stream(run, plan), original.inputs, target), original)
    target.unlink()
    run.library.store_result(key, asdict(quality))
    return quality


def plan_stream(run: Run, plan: Plan, dtype: torch.dtype = torch.float32) -> Stream:
    """The planned model, block by block, its variants dequantized."""
    sites = by_id(run.skeleton)
    healed = HealedTensors(run.library, run.skeleton, plan.healed)

    def weight_at(site: Site) -> Tensor | None:
        choice = plan.choices.get(site.id)
        if not choice or not choice.key:
            return None
        return packed_module(run, site, choice.key, healed.packed(site)).dequantize()

    weights = Substituted(healed.over(run.original.parameters), sites.values(), weight_at)
    return run.stream(weights, dtype, kept_blocks(run, plan))


def dense_weight(run: Run, site: Site, key: str) -> Tensor:
    """A variant's weight [out, in], fp32, from the library."""
    return packed_module(run, site, key).dequantize()


def packed_module(
    run: Run, site: Site, key: str, changed: Mapping[str, Tensor] | None = None
) -> PackedLinear:
    """A variant from the library, some of its stored tensors changed."""
    record = run.library.lookup(key)
    if record is None:
        raise KeyError(f"library entry {key} of {site.id} is gone")
    format = format_from_spec(record.format_spec)
    if not isinstance(format, PackedFormat):
        raise TypeError(f"{site.id}: {format.name} has no packed tensors")
    module = format.empty(site.shape, bias=False, dtype=torch.float32)
    module.load_stored({**run.library.tensors(key), **(changed or {})})
    return module


def kept_blocks(run: Run, plan: Plan) -> list[int]:
    """Blocks that the plan does not drop."""
    dropped = {
        site.block
        for site in run.skeleton.sites
        if site.kind is SiteKind.BLOCK and _candidate(plan.choices, site.id) == "drop"
    }
    return [index for index in range(run.skeleton.num_blocks) if index not in dropped]


def _candidate(choices: Mapping[str, object], site: str) -> str:
    return str(getattr(choices.get(site), "candidate", "keep"))


def plan_path(out: Path) -> Path:
    """Where a fitted folder keeps its plan."""
    return out / "blockwright-plan.json"
