"""What a change of the model costs, measured: a plan, or one candidate at one site."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from itertools import pairwise

import torch
from torch import Tensor

from blockwright.anatomy import Skeleton
from blockwright.attention.huggingface import use_policies
from blockwright.evaluate import FinalHidden, measure, run_from, run_to_file
from blockwright.kvcache import decoded
from blockwright.pipeline.opening import Run, digest_of
from blockwright.pipeline.placing import Placement
from blockwright.stream import ActivationFile, Inputs, Stream, Substituted
from blockwright.texts import TokenSet
from blockwright.types import (
    KEEP,
    CacheFormat,
    Choice,
    Plan,
    Quality,
    Site,
    SiteKind,
    cache_block,
    policy_block,
)


def loss_of(quality: Quality) -> float:
    """What plans are ranked by: KL in nats per token; of encoders the squared relative error of the
    last hidden state.  The unit of predicted losses.
    """
    if quality.kl_divergence is not None:
        return quality.kl_divergence
    if quality.relative_error is None:
        raise ValueError("a plan is measured against the original")
    return quality.relative_error**2


def with_measured(plan: Plan, quality: Quality) -> Plan:
    """The plan with its figures on the selection text, ``selection_loss`` among them."""
    figures = {name: value for name, value in asdict(quality).items() if value is not None}
    return replace(plan, measured={**figures, "selection_loss": loss_of(quality)})


def measure_on_selection(run: Run, plan: Plan) -> Plan:
    """The plan with its figures on the selection text."""
    text = run.texts.selection
    original = original_on(run, "selection", text)
    return with_measured(plan, measure_plan(run, plan, original, text.digest))


def original_on(run: Run, name: str, text: TokenSet) -> FinalHidden:
    """The original's last hidden states on one of the run's texts."""
    return original_hidden(run, Inputs.of_tokens(text.ids), f"{name}-{text.digest}")


def original_of_calibration(run: Run, inputs: Inputs) -> FinalHidden:
    """The original's last hidden states on some rows of the calibration text."""
    return original_hidden(run, inputs, _calibration_rows(run, inputs))


def measure_change(run: Run, choices: Mapping[str, Choice], original: FinalHidden) -> float:
    """Loss when some sites take a candidate and all else stays; blocks in front of the first that
    changes are not run again.

    ``original``: on some calibration rows, see ``original_of_calibration``.
    """
    text = _calibration_rows(run, original.inputs)
    plan = Plan(
        fingerprint=run.original.fingerprint,
        statistics=run.statistics_digest,
        budget="",
        bits_per_weight=0.0,
        size_bytes=0,
        loss=0.0,
        choices=choices,
    )
    return loss_of(measure_plan(run, plan, original, text, first_changed(run, choices)))


def first_changed(run: Run, choices: Collection[str]) -> int:
    """Index of the first block in which one of these sites is; 0 where one is outside of blocks, or
    a policy, with which the model prepares other masks for all of them.
    """
    prefix, found = f"{run.skeleton.block_path}.", run.skeleton.num_blocks
    for site in choices:
        index = site.removeprefix(prefix).partition(".")[0]
        inside = index.isdecimal() and not policy_block(site)
        found = min(found, int(index) if inside else 0)
    return found


def in_front_of(original: FinalHidden, index: int) -> ActivationFile:
    """The original's hidden states in front of a block, computed once."""
    stream, stem, inputs = original.stream, original.stem, original.inputs
    name = original.file.path.with_name
    files = [stream.file(name(f"before-{block:04d}.bin"), stem) for block in range(index + 1)]
    if not files[0].is_complete(inputs.rows):
        stream.run_stem(inputs, files[0].path)
    for block, (source, following) in enumerate(pairwise(files)):
        if not following.is_complete(inputs.rows):
            batches = source.batches(inputs.rows, inputs.batch_size)
            stream.run_block(block, stream.block(block), stem, batches, output=following.path)
    return files[index]


def _calibration_rows(run: Run, inputs: Inputs) -> str:
    return f"calibration-{run.texts.calibration.digest}-{inputs.rows}"


def original_hidden(run: Run, inputs: Inputs, text: str) -> FinalHidden:
    """The original's last hidden states on a text, computed once and kept in the library."""
    key = digest_of([run.original.fingerprint, text, run.surroundings])
    stream, name = run.stream(), text.partition("-")[0]
    folder = run.library.work_folder(f"{name}-{key}")
    with run.progress.stage(f"original on {name} text", len(stream.blocks), "blocks") as stage:
        return run_to_file(stream, inputs, folder / "original.bin", stage.advance)


def measure_plan(run: Run, plan: Plan, original: FinalHidden, text: str, first: int = 0) -> Quality:
    """Quality of a plan without writing it out; a plan measured before is looked up.  Blocks in
    front of ``first`` are the original's, and so is all outside of blocks where it is not 0.
    """
    choices = {site: [choice.candidate, choice.key] for site, choice in plan.choices.items()}
    choices |= {f"healed {block}": [key] for block, key in plan.healed.items()}
    key = digest_of([run.original.fingerprint, choices, text, run.surroundings])
    known = run.library.result(key)
    if known is not None:
        return Quality(**known)
    target = original.file.path.with_name(f"{key}.bin")
    stream = plan_stream(run, plan)
    place = sum(index < first for index in stream.blocks)
    parts = len(stream.blocks) - place + 1
    with run.progress.stage(f"measure {plan.name}", parts, "parts") as stage:
        if first:
            start = in_front_of(original, first)
            around = (stream, original.inputs, original.stem, target, stage.advance)
            hidden = run_from(start, place, *around)
        else:
            hidden = run_to_file(stream, original.inputs, target, stage.advance)
        quality = measure(hidden, original)
        stage.advance()
    target.unlink(missing_ok=True)
    run.library.store_result(key, asdict(quality))
    return quality


def plan_stream(run: Run, plan: Plan, dtype: torch.dtype = torch.float32) -> Stream:
    """The planned model, block by block, its variants dequantized."""
    placement = Placement(run, plan)

    def weight_at(site: Site) -> Tensor | None:
        return placement.module(site).dequantize() if site.id in placement.keys else None

    weights = Substituted(placement.source(), run.skeleton.sites, weight_at)
    around = decoded(planned_caches(plan))
    skeleton = attending(run.skeleton, planned_policies(plan))
    return run.stream(weights, dtype, kept_blocks(run, plan), around, skeleton)


def attending(skeleton: Skeleton, policies: Mapping[int, str]) -> Skeleton:
    """The skeleton with attention policies in some blocks; itself where there are none."""
    if not policies:
        return skeleton
    model = copy.deepcopy(skeleton.model)
    use_policies(model, policies)
    return replace(skeleton, model=model, config=model.config)


def planned_policies(plan: Plan) -> dict[int, str]:
    """Block -> its attention policy, where the plan chose one."""
    found = {}
    for site, choice in plan.choices.items():
        index = policy_block(site).rpartition(".")[2]
        if index.isdecimal() and choice.candidate != str(KEEP):
            found[int(index)] = choice.candidate
    return found


def planned_caches(plan: Plan) -> dict[int, CacheFormat]:
    """Block -> format of its KV cache, where the plan chose one."""
    found = {}
    for site, choice in plan.choices.items():
        index = cache_block(site).rpartition(".")[2]
        if index.isdecimal() and choice.candidate != str(KEEP):
            found[int(index)] = CacheFormat.parse(choice.candidate)
    return found


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
