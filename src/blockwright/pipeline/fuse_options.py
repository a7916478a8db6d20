"""Fused blocks as candidates: each measured alone and beside the drop of its neighbour."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from blockwright.evaluate import FinalHidden
from blockwright.pipeline.dropping import inside_block, left_to_parts
from blockwright.pipeline.measuring import measure_change
from blockwright.pipeline.opening import Run
from blockwright.registry import resolve
from blockwright.types import (
    DROP,
    Candidate,
    Choice,
    FuseFormat,
    Option,
    Pair,
    Site,
    VariantRecord,
)

FusedRecord = tuple[Site, VariantRecord]
"""A block that stays, and its variant."""
MEASURED_FUSED = 2
"""Models that are measured for a fused variant: with it alone, and with its neighbour dropped."""


def measure_fused(
    run: Run,
    fused: Sequence[FusedRecord],
    dropped: Mapping[str, float],
    original: FinalHidden,
    held: Collection[str],
    advance: Callable[[], None],
) -> tuple[list[Option], list[Pair]]:
    """Options of fused blocks, and what each costs together with its neighbour dropped beside what
    both cost alone; alone it does its neighbour's work a second time.

    ``dropped``: loss without a block, where it may be dropped.
    """
    options, pairs = list[Option](), list[Pair]()
    unoffered = {site.id: site for site, _ in fused if site.id not in dropped}
    options += [left_to_parts(site) for site in unoffered.values()]
    for site, record in fused:
        choice = Choice(candidate=record.candidate, stored_bytes=0, loss=0.0, key=record.key)
        lost = f"{run.skeleton.block_path}.{_neighbour(site, record)}"
        drop = Choice(candidate=str(DROP), stored_bytes=0, loss=0.0)
        alone = measure_change(run, {site.id: choice}, original)
        options.append(_option(run, site, record, alone, held))
        advance()
        both = measure_change(run, {site.id: choice, lost: drop}, original)
        if lost in dropped:
            pairs.append(
                Pair(
                    sites=(lost, site.id),
                    candidates=(str(DROP), record.candidate),
                    loss=both - alone - dropped[lost],
                )
            )
        advance()
    return options, pairs


def _neighbour(site: Site, record: VariantRecord) -> int:
    format = resolve(Candidate.parse(record.candidate))[0]
    if not isinstance(format, FuseFormat) or site.block is None:
        raise TypeError(f"{record.candidate} at {site.id} fuses no block")
    return format.lost(site.block)


def _option(
    run: Run, site: Site, record: VariantRecord, loss: float, held: Collection[str]
) -> Option:
    return Option(
        site=site.id,
        candidate=record.candidate,
        weights=site.weights,
        stored_bytes=record.stored_bytes,
        loss=loss,
        key=record.key,
        contains=inside_block(run, site, held),
    )
