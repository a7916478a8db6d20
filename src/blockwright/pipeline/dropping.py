"""Dropped blocks as candidates: each by its measured loss, neighbours in pairs."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from blockwright.anatomy import pruned_config
from blockwright.errors import ModelError
from blockwright.evaluate import FinalHidden
from blockwright.pipeline.measuring import measure_change
from blockwright.pipeline.opening import Run
from blockwright.types import DROP, Choice, Option, Pair, Site, SiteKind


def droppable(run: Run) -> tuple[list[Site], dict[str, str]]:
    """Blocks that may be dropped here, and why others may not (``site candidate`` -> reason)."""
    if run.edited is not None:
        named = [site for site in run.skeleton.sites if site.id in run.edited.choices]
        return [site for site in named if site.kind is SiteKind.BLOCK], {}
    if DROP not in run.candidates:
        return [], {}
    blocks = [site for site in run.skeleton.sites if site.kind is SiteKind.BLOCK]
    trust = run.request.trust_remote_code
    possible, unavailable = [], {}
    for site in blocks:
        kept = [index for index in range(run.skeleton.num_blocks) if index != site.block]
        try:
            pruned_config(run.skeleton.config, kept, trust_remote_code=trust)
            possible.append(site)
        except ModelError as error:
            unavailable[f"{site.id} drop"] = str(error)
    return possible, unavailable


def neighbours(blocks: Sequence[Site]) -> list[tuple[Site, Site]]:
    """Neighbouring blocks that may both be dropped."""
    at = {site.block: site for site in blocks}
    return [
        (site, at[place + 1]) for place, site in at.items() if place is not None and place + 1 in at
    ]


def loss_without(run: Run, blocks: Sequence[Site], original: FinalHidden) -> float:
    """The measured loss of dropping some blocks."""
    drop = Choice(candidate=str(DROP), stored_bytes=0, loss=0.0)
    return measure_change(run, {site.id: drop for site in blocks}, original)


def pair_of(blocks: tuple[Site, Site], loss: float) -> Pair:
    """What dropping two neighbours costs beside what each costs: scattered drops look cheap."""
    first, second = blocks
    return Pair(sites=(first.id, second.id), candidates=(str(DROP), str(DROP)), loss=loss)


def drop_options(run: Run, site: Site, loss: float, held: Collection[str]) -> list[Option]:
    """Keep or drop a block; dropped, its norms go as well.  ``held``: groups and KV caches on
    offer.
    """
    if site.block is None:
        raise ValueError(f"{site.id} is no block")
    inner = [s.id for s in run.skeleton.block_sites(site.block) if s.parameter]
    others = sorted(name for name in held if name.startswith(f"{site.id}."))
    drop = Option(
        site=site.id,
        candidate=str(DROP),
        weights=0,
        stored_bytes=0,
        loss=loss,
        contains=(*inner, *others),
        other_bytes=-run.skeleton.bytes_beside_sites(site.block),
    )
    return [left_to_parts(site), drop]


def left_to_parts(site: Site) -> Option:
    """The choice that leaves a block or a group to what is in it."""
    return Option(site=site.id, candidate="keep", weights=0, stored_bytes=0, loss=0.0)
