"""Capture and library: the forward sweep, and every missing variant of a block built while it is
there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from blockwright.capture import CapturedBlock, capture_tables, forward_sweep, linear_sites
from blockwright.library import variant_key
from blockwright.library.build import (
    WantedVariant,
    build_variants,
    needs_of,
    variant_inputs,
)
from blockwright.library.group import build_group
from blockwright.pipeline.curvature import moments_key, output_moments, site_moments
from blockwright.pipeline.fusing import blocks_to_fuse, build_fused, wanted_fused_variants
from blockwright.pipeline.grouping import group_tensors, groups_of, wanted_group_variants
from blockwright.pipeline.narrowing import build_part, parts_to_narrow, wanted_part_variants
from blockwright.pipeline.opening import Run
from blockwright.stream import Stream, weight_of
from blockwright.types import (
    Candidate,
    Group,
    Site,
    Statistic,
    Statistics,
    TableRole,
    VariantRecord,
)

TABLE_TOKENS = 8_192
"""Calibration tokens whose logits are computed for the statistics of the head."""


@dataclass(frozen=True)
class Built:
    """The library's answer for a run."""

    records: Mapping[tuple[str, str], VariantRecord]
    """(site id, candidate) -> record."""
    hits: int
    misses: int

    @property
    def unavailable(self) -> dict[str, str]:
        """``site candidate`` -> reason."""
        return {
            f"{site} {candidate}": record.unavailable
            for (site, candidate), record in self.records.items()
            if not record.available
        }


def wanted_variants(run: Run, site: Site) -> list[WantedVariant]:
    """All variants of a site on the original's inputs, with their keys."""
    seen = digest_at(run, site)
    return [wanted_variant(run, site, candidate, seen) for candidate in run.candidates_for(site)]


def wanted_variant(run: Run, site: Site, candidate: Candidate, seen: str) -> WantedVariant:
    """One variant; ``seen``: digest of what the site saw."""
    ranked = f"{seen}/moments-{moments_key(run)}" if is_ranked(candidate) else seen
    inputs = variant_inputs(
        source=run.original.weight_digest(site),
        candidate=candidate,
        statistics=ranked,
        surroundings=run.surroundings,
    )
    return WantedVariant(candidate, variant_key(inputs), inputs)


def is_ranked(candidate: Candidate) -> bool:
    """Whether its methods read how much the loss feels each output."""
    return Statistic.OUTPUT_GRADIENT in needs_of([candidate])


def digest_at(run: Run, site: Site) -> str:
    """Digest of what a site saw: text, and the model in front of it."""
    return f"{run.statistics_digest}/{site.id}"


def build_library(run: Run) -> Built:
    """Build what the library lacks; a block whose variants are all there is not even captured."""
    sites = [site for site in run.skeleton.sites if site.parameter]
    wanted = {site.id: wanted_variants(run, site) for site in sites}
    wanted |= {group.site.id: wanted_group_variants(run, group) for group in groups_of(run)}
    wanted |= {part.site.id: wanted_part_variants(run, part) for part in parts_to_narrow(run)}
    wanted |= {site.id: wanted_fused_variants(run, site) for site in blocks_to_fuse(run)}
    missing = {
        site: [item for item in items if run.library.lookup(item.key) is None]
        for site, items in wanted.items()
    }
    misses = sum(map(len, missing.values()))
    if any(is_ranked(item.candidate) for items in missing.values() for item in items):
        output_moments(run)
    if misses:
        _capture_and_build(run, missing)
    records = {}
    for site_id, items in wanted.items():
        for item in items:
            record = run.library.lookup(item.key)
            if record is None:
                raise RuntimeError(f"{site_id} {item.candidate} was not built")
            records[site_id, str(item.candidate)] = record
    return Built(records, sum(map(len, wanted.values())) - misses, misses)


def _capture_and_build(run: Run, missing: Mapping[str, list[WantedVariant]]) -> None:
    stream = run.stream(dtype=run.capture_dtype)
    folder = run.library.work_folder(run.statistics_digest)
    groups, parts = groups_of(run), parts_to_narrow(run)
    joint = [group.site for group in groups] + [part.site for part in parts]

    def needs(index: int) -> Collection[Statistic] | None:
        sites = [*linear_sites(stream, index), *(site for site in joint if site.block == index)]
        asked = [item for site in sites for item in missing[site.id]]
        return needs_of([item.candidate for item in asked]) if asked else None

    with run.progress.stage("calibrate and build", run.skeleton.num_blocks, "blocks") as stage:
        for block in forward_sweep(stream, run.calibration_inputs, folder, needs):
            build_block(run, block, missing)
            for group in groups:
                if group.site.block == block.index:
                    build_groups(run, group, block.statistics, missing[group.site.id])
            for part in parts:
                if part.site.block == block.index and missing[part.site.id]:
                    build_part(run, part, block.statistics, missing[part.site.id])
            stage.advance()
    blocks = [site for site in blocks_to_fuse(run) if missing[site.id]]
    if blocks:
        with run.progress.stage("fuse blocks", len(blocks), "blocks") as stage:
            for site in blocks:
                build_fused(run, site, missing[site.id])
                stage.advance()
    tables = [site for site in run.skeleton.tables if missing[site.id]]
    if tables:
        with run.progress.stage("build tables", len(tables), "tables") as stage:
            for site in tables:
                _build_table(run, stream, folder, site, missing[site.id])
                stage.advance()


def build_block(run: Run, block: CapturedBlock, missing: Mapping[str, list[WantedVariant]]) -> None:
    """Build the missing variants of one block's sites."""
    for site in run.skeleton.block_sites(block.index):
        items = missing.get(site.id, []) if site.parameter else []
        if items:
            W_OI = weight_of(site, block.parameters[site.parameter])
            build_site(run, site, W_OI, block.statistics.get(site.id), items)


def build_groups(
    run: Run,
    group: Group,
    statistics: Mapping[str, Statistics],
    items: Sequence[WantedVariant],
) -> None:
    """Build variants of one group and store them."""
    if not items:
        return
    tensors = group_tensors(run, group)
    seen = statistics.get(group.members[0].id)
    for item in items:
        with run.library.building(item.key):
            built = build_group(group, tensors, seen, item)
            run.library.store(built.record, built.tensors, built.row_errors)


def build_site(
    run: Run,
    site: Site,
    W_OI: Tensor,
    statistics: Statistics | None,
    items: Sequence[WantedVariant],
) -> None:
    """Build variants of one weight and store them; their locks are held meanwhile."""
    if statistics is not None and any(is_ranked(item.candidate) for item in items):
        statistics = replace(statistics, output_gradient=site_moments(run, site))
    with ExitStack() as locks:
        for item in items:
            locks.enter_context(run.library.building(item.key))
        for built in build_variants(site.id, W_OI, statistics, items):
            run.library.store(built.record, built.tensors, built.row_errors)


def _build_table(
    run: Run, stream: Stream, folder: Path, site: Site, items: Sequence[WantedVariant]
) -> None:
    """A table's inputs: hidden states for a head, token frequencies for an embedding."""
    parameter = run.original.parameters.load([site.parameter])[site.parameter]
    statistics = None
    if site.role in (TableRole.HEAD, TableRole.TIED):
        needs = needs_of([item.candidate for item in items])
        found = capture_tables(stream, run.calibration_inputs, folder, needs, TABLE_TOKENS)
        statistics = found.get(site.id)
    else:
        # A looked-up row is the output itself: its squared error, mean over rows.
        gram = torch.eye(site.shape[1]) / site.shape[0]
        statistics = Statistics(tokens=run.texts.calibration.tokens, input_gram=gram)
    build_site(run, site, weight_of(site, parameter), statistics, items)
