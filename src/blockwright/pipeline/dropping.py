"""Dropped blocks and parts as candidates: each by its measured loss, neighbours in pairs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from blockwright.anatomy import pruned_config
from blockwright.errors import ModelError
from blockwright.evaluate import FinalHidden
from blockwright.library.part import why_not
from blockwright.pipeline.grouping import groups_of
from blockwright.pipeline.measuring import measure_change
from blockwright.pipeline.narrowing import freed_biases, narrow_bytes, widths_for
from blockwright.pipeline.opening import Run
from blockwright.pipeline.parting import parts_of, without_parts
from blockwright.registry import resolve
from blockwright.types import (
    DROP,
    Candidate,
    Choice,
    Option,
    Pair,
    Part,
    PartRole,
    Site,
    SiteKind,
    VariantRecord,
    WidthFormat,
    cache_site,
    policy_site,
)

MEASURED_DROPS = 6
"""Models that are measured for a block: without it, without either part, and without what it and
the next block have of each of these.
"""


@dataclass(frozen=True)
class Droppable:
    """What may be dropped here."""

    blocks: tuple[Site, ...] = ()
    parts: tuple[Part, ...] = ()
    unavailable: dict[str, str] = field(default_factory=dict)
    """Why others may not (``site candidate`` -> reason)."""

    @property
    def changes(self) -> int:
        """How many models are measured."""
        pairs = len(neighbours(self.blocks)) + len(_neighbouring_parts(self.parts))
        apart = [pair for pair in _in_one_block(self.parts) if not _known_together(self, pair)]
        return len(self.blocks) + len(self.parts) + pairs + len(apart)


def droppable(run: Run) -> Droppable:
    """Blocks and parts that may be dropped: where ``drop`` is on offer all that can be, of a plan
    file those that it names.
    """
    if run.edited is not None:
        named = [site for site in run.skeleton.sites if site.id in run.edited.choices]
        blocks = tuple(site for site in named if site.kind is SiteKind.BLOCK)
        dropped = (p for p in parts_of(run) if run.edited.choices[p.site.id].candidate == str(DROP))
        return Droppable(blocks, tuple(dropped))
    if not run.drops_blocks:
        return Droppable(unavailable=without_parts(run))
    trust = run.request.trust_remote_code
    possible, unavailable = [], {}
    for site in (site for site in run.skeleton.sites if site.kind is SiteKind.BLOCK):
        kept = [index for index in range(run.skeleton.num_blocks) if index != site.block]
        try:
            pruned_config(run.skeleton.config, kept, trust_remote_code=trust)
            possible.append(site)
        except ModelError as error:
            unavailable[f"{site.id} drop"] = str(error)
    found = parts_of(run) if run.drops_parts else ()
    parts = tuple(part for part in found if not part.refused)
    return Droppable(tuple(possible), parts, unavailable | without_parts(run))


def measure_drops(
    run: Run,
    droppable: Droppable,
    original: FinalHidden,
    held: Collection[str],
    advance: Callable[[], None],
) -> tuple[list[Option], list[Pair]]:
    """Options of all that may be dropped, and what neighbours cost together beside what each costs.

    ``held``: parts, groups and KV caches on offer.
    """
    options, alone = list[Option](), dict[str, float]()
    for site in droppable.blocks:
        alone[site.id] = loss_without(run, [site.id], original)
        options += drop_options(run, site, alone[site.id], held)
        advance()
    for part in droppable.parts:
        alone[part.site.id] = loss_without(run, [part.site.id], original)
        options.append(part_option(run, part, alone[part.site.id], held))
        advance()
    pairs = []
    together = [(first.id, second.id) for first, second in neighbours(droppable.blocks)]
    together += [_ids(pair) for pair in _neighbouring_parts(droppable.parts)]
    for both in _in_one_block(droppable.parts):
        known = _known_together(droppable, both)
        if known:
            pairs.append(pair_of(_ids(both), alone[known], alone))
        else:
            together.append(_ids(both))
    for ids in together:
        pairs.append(pair_of(ids, loss_without(run, ids, original), alone))
        advance()
    return options, pairs


def neighbours(blocks: Sequence[Site]) -> list[tuple[Site, Site]]:
    """Neighbouring blocks that may both be dropped."""
    at = {site.block: site for site in blocks}
    return [
        (site, at[place + 1]) for place, site in at.items() if place is not None and place + 1 in at
    ]


def _neighbouring_parts(parts: Sequence[Part]) -> list[tuple[Part, Part]]:
    """Parts of one role in neighbouring blocks."""
    return [
        (one, other)
        for one in parts
        for other in parts
        if one.role is other.role and one.site.block == (other.site.block or 0) - 1
    ]


def _in_one_block(parts: Sequence[Part]) -> list[tuple[Part, Part]]:
    return [
        (one, other)
        for place, one in enumerate(parts)
        for other in parts[place + 1 :]
        if one.site.block == other.site.block
    ]


def _known_together(droppable: Droppable, both: tuple[Part, Part]) -> str:
    """The block that does the same dropped as without these parts, where it is measured."""
    if not all(part.writes_all for part in both):
        return ""
    own = [part for part in droppable.parts if part.site.block == both[0].site.block]
    blocks = [site.id for site in droppable.blocks if site.block == both[0].site.block]
    return blocks[0] if blocks and len(own) == len(both) else ""


def _ids(both: tuple[Part, Part]) -> tuple[str, str]:
    return both[0].site.id, both[1].site.id


def loss_without(run: Run, sites: Iterable[str], original: FinalHidden) -> float:
    """The measured loss of dropping some blocks or parts."""
    drop = Choice(candidate=str(DROP), stored_bytes=0, loss=0.0)
    return measure_change(run, dict.fromkeys(sites, drop), original)


def pair_of(sites: tuple[str, str], together: float, alone: dict[str, float]) -> Pair:
    """What dropping both costs beside what each costs: scattered drops look cheap."""
    loss = together - sum(alone[site] for site in sites)
    return Pair(sites=sites, candidates=(str(DROP), str(DROP)), loss=loss)


def drop_options(run: Run, site: Site, loss: float, held: Collection[str]) -> list[Option]:
    """Keep or drop a block; dropped, its norms go as well.  ``held``: parts, groups and KV caches
    on offer.
    """
    if site.block is None:
        raise ValueError(f"{site.id} is no block")
    drop = Option(
        site=site.id,
        candidate=str(DROP),
        weights=0,
        stored_bytes=0,
        loss=loss,
        contains=inside_block(run, site, held),
        other_bytes=-run.skeleton.bytes_beside_sites(site.block),
    )
    return [left_to_parts(site), drop]


def inside_block(run: Run, site: Site, held: Collection[str]) -> tuple[str, ...]:
    """What is gone or decided with a block: its linears, and what of ``held`` is in it."""
    inner = [s.id for s in run.skeleton.block_sites(site.block or 0) if s.parameter]
    return (*inner, *sorted(name for name in held if name.startswith(f"{site.id}.")))


def part_option(run: Run, part: Part, loss: float, held: Collection[str]) -> Option:
    """Drop a part; attention takes the block's KV cache along."""
    return Option(
        site=part.site.id,
        candidate=str(DROP),
        weights=0,
        stored_bytes=0,
        loss=loss,
        contains=inside(run, part, held),
        other_bytes=-bytes_beside(run, part),
        cache=_block_of(run, part) if part.role is PartRole.ATTENTION else "",
    )


def narrow_option(run: Run, part: Part, record: VariantRecord, held: Collection[str]) -> Option:
    """A part with fewer channels, its loss not measured yet."""
    format = resolve(Candidate.parse(record.candidate))[0]
    if not isinstance(format, WidthFormat):
        raise TypeError(f"{record.candidate} at {part.site.id} is no narrower part")
    freed = freed_biases(run, part, format)
    return Option(
        site=part.site.id,
        candidate=record.candidate,
        weights=part.site.weights,
        stored_bytes=record.stored_bytes,
        loss=0.0,
        key=record.key,
        contains=inside(run, part, held),
        other_bytes=-freed,
        resident_bytes=narrow_bytes(run, part, format, resident=True) - freed,
    )


def declared_narrower(run: Run, part: Part, held: Collection[str]) -> list[Option]:
    """The widths of a part with the bytes that they take, losses unknown."""
    found = [left_to_parts(part.site)]
    for candidate in widths_for(run, part):
        format = resolve(candidate)[0]
        if isinstance(format, WidthFormat) and not why_not(part, format):
            stored = narrow_bytes(run, part, format)
            record = VariantRecord(
                key="", site=part.site.id, candidate=str(candidate), stored_bytes=stored
            )
            found.append(narrow_option(run, part, record, held))
    return found if len(found) > 1 else []


def inside(run: Run, part: Part, held: Collection[str]) -> tuple[str, ...]:
    """What is gone or decided with a part: its linears, and groups, its cache and its attention
    policy where on offer.
    """
    members = [member.id for member in part.members]
    groups = [g.site.id for g in groups_of(run) if g.members and g.members[0].id in members]
    others = sorted(name for name in groups if name in held)
    block = _block_of(run, part)
    if part.role is PartRole.ATTENTION:
        others += [site for site in (cache_site(block), policy_site(block)) if site in held]
    return (*members, *others)


def _block_of(run: Run, part: Part) -> str:
    return f"{run.skeleton.block_path}.{part.site.block}"


def bytes_beside(run: Run, part: Part) -> int:
    """Bytes of what goes with a part beside its members' weights: biases, norms of its heads."""
    weights = {member.parameter for member in part.members}
    tensors = run.skeleton.parameters
    return sum(tensors[name].nbytes for name in part.parameters if name not in weights)


def left_to_parts(site: Site) -> Option:
    """The choice that leaves a block, a part or a group to what is in it."""
    return Option(site=site.id, candidate="keep", weights=0, stored_bytes=0, loss=0.0)
