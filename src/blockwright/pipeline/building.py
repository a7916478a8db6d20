"""Capture and library: the forward sweep, and every missing variant of a block built while it is
there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
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
from blockwright.pipeline.opening import Run
from blockwright.stream import Stream, weight_of
from blockwright.types import (
    Option,
    Plan,
    Problem,
    Site,
    SiteKind,
    Statistic,
    Statistics,
    TableRole,
    VariantRecord,
)

HEADER_BYTES_PER_TENSOR = 160
"""Upper estimate of a tensor's entry in a safetensors header, its name left out."""
USUAL_TENSORS = 3
"""Tensors of a packed site whose entries are counted beforehand: codes, scales, zero points."""
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
    """All variants of a site, with their keys."""
    source = run.original.weight_digest(site)
    found = []
    for candidate in run.candidates_for(site):
        inputs = variant_inputs(
            source=source,
            candidate=candidate,
            statistics=digest_at(run, site),
            surroundings=run.surroundings,
        )
        found.append(WantedVariant(candidate, variant_key(inputs), inputs))
    return found


def digest_at(run: Run, site: Site) -> str:
    """Digest of what a site saw: text, and the model in front of it."""
    return f"{run.statistics_digest}/{site.id}"


def build_library(run: Run) -> Built:
    """Build what the library lacks; a block whose variants are all there is not even captured."""
    sites = [site for site in run.skeleton.sites if site.parameter]
    wanted = {site.id: wanted_variants(run, site) for site in sites}
    missing = {
        site: [item for item in items if run.library.lookup(item.key) is None]
        for site, items in wanted.items()
    }
    misses = sum(map(len, missing.values()))
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

    def needs(index: int) -> Collection[Statistic] | None:
        asked = [item for site in linear_sites(stream, index) for item in missing[site.id]]
        return needs_of([item.candidate for item in asked]) if asked else None

    with run.progress.stage("calibrate and build", run.skeleton.num_blocks, "blocks") as stage:
        for block in forward_sweep(stream, run.calibration_inputs, folder, needs):
            build_block(run, block, missing)
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
        items = missing.get(site.id, [])
        if items:
            W_OI = weight_of(site, block.parameters[site.parameter])
            build_site(run, site, W_OI, block.statistics.get(site.id), items)


def build_site(
    run: Run,
    site: Site,
    W_OI: Tensor,
    statistics: Statistics | None,
    items: Sequence[WantedVariant],
) -> None:
    """Build variants of one weight and store them; their locks are held meanwhile."""
    with ExitStack() as locks:
        for item in items:
            locks.enter_context(run.library.building(item.key))
        for built in build_variants(site.id, W_OI, statistics, items):
            run.library.store(built.record, built.tensors)


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


def pose_problem(run: Run, built: Built) -> Problem:
    """What the plan is solved from."""
    skeleton = run.skeleton
    options: list[Option] = []
    replaceable = 0
    for site in skeleton.sites:
        if not site.parameter:
            continue
        dtype = skeleton.parameters[site.parameter].dtype
        dense_bytes = site.shape[0] * site.shape[1] * dtype.itemsize
        replaceable += dense_bytes
        weights = site.weights if site.kind is SiteKind.LINEAR else 0
        keep = Option(
            site=site.id,
            candidate="keep",
            weights=weights,
            stored_bytes=dense_bytes,
            loss=0.0,
            tie=site.tie,
        )
        options.append(keep)
        for candidate in run.candidates_for(site):
            record = built.records[site.id, str(candidate)]
            if record.available:
                options.append(_option(site, weights, record))
    if run.edited is not None:
        options += dropped_blocks(run, run.edited)
    original_bytes = run.original.checkpoint.total_file_bytes
    return Problem(
        model=run.request.model,
        fingerprint=run.original.fingerprint,
        statistics=run.statistics_digest,
        options=tuple(options),
        linear_weights=skeleton.linear_weights,
        fixed_bytes=_fixed_bytes(run, replaceable),
        original_bytes=original_bytes,
    )


def dropped_blocks(run: Run, plan: Plan) -> list[Option]:
    """Options for the blocks that a plan file drops."""
    found = []
    for site in run.skeleton.sites:
        choice = plan.choices.get(site.id)
        if site.kind is SiteKind.BLOCK and choice is not None and site.block is not None:
            inner = [s.id for s in run.skeleton.block_sites(site.block) if s.parameter]
            option = Option(
                site=site.id,
                candidate=choice.candidate,
                weights=0,
                stored_bytes=0,
                loss=0.0,
                contains=tuple(inner) if choice.candidate == "drop" else (),
            )
            found.append(option)
    return found


def _option(site: Site, weights: int, record: VariantRecord) -> Option:
    return Option(
        site=site.id,
        candidate=record.candidate,
        weights=weights,
        stored_bytes=record.stored_bytes,
        loss=record.error,
        key=record.key,
        tie=site.tie,
        other_bytes=header_bytes(site.id, max(record.stored_tensors - USUAL_TENSORS, 0)),
    )


def header_bytes(name: str, tensors: int) -> int:
    """Upper estimate of the header entries of some tensors of this name."""
    return tensors * (len(name) + HEADER_BYTES_PER_TENSOR)


def _fixed_bytes(run: Run, replaceable: int) -> int:
    """Everything that is no site, and an upper estimate of the headers."""
    tied = set(run.skeleton.model.all_tied_weights_keys)
    tensors = {n: t for n, t in run.skeleton.parameters.items() if n not in tied}
    unused = run.original.parameters.unused
    stored = sum(tensor.nbytes for tensor in tensors.values())
    stored += sum(run.original.checkpoint.nbytes(name) for name in unused)
    sites = run.skeleton.sites
    headers = sum(header_bytes(name, 1) for name in (*tensors, *unused))
    headers += sum(header_bytes(site.id, USUAL_TENSORS) for site in sites)
    return stored - replaceable + headers
