"""The map of a plan: blocks by sites, with what was chosen at each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from blockwright.types import Choice, Plan, Problem, Site, SiteKind
from blockwright.types.report import MapCell, MapColumn, MapRow, PlanMap, TableChoice

UNDECIDED = Choice(candidate="keep", stored_bytes=0, loss=0.0)
Columns = dict[str, list[Site]]
"""Name inside the block -> its linear sites there: one, or one per expert."""


@dataclass(frozen=True)
class Decision:
    """What stands at one site: its own choice, or its part of a choice that covers several."""

    site: str
    """Whose choice it is."""
    candidate: str
    stored_bytes: float
    loss: float
    covers: tuple[str, ...]


def map_plan(sites: Sequence[Site], plan: Plan, problem: Problem) -> PlanMap:
    """Rows are blocks, columns the names of linear sites in the order of the block."""
    decided = decide(sites, plan, problem)
    blocks = {site: by_column(sites, site) for site in sites if _is_block(site)}
    columns = _columns(list(blocks.values()))
    places = {column.name: index for index, column in enumerate(columns)}
    rows = [
        _row(
            block.block or 0,
            [_cell(places[name], found[name], decided, block.id) for name in found],
            found,
        )
        for block, found in blocks.items()
    ]
    tables = [_table(site, decided[site.id]) for site in sites if site.id in decided]
    return PlanMap(
        columns=columns,
        rows=tuple(rows),
        tables=tuple(table for table in tables if table is not None),
    )


def decide(sites: Sequence[Site], plan: Plan, problem: Problem) -> dict[str, Decision]:
    """Site -> what stands there.  A choice for several sites is shared out by their weights."""
    weights = {site.id: site.weights for site in sites}
    contains = {(o.site, o.candidate): o.contains for o in problem.options if o.contains}
    found = {}
    for site, choice in plan.choices.items():
        covers = contains.get((site, choice.candidate)) or (site,)
        total = sum(weights.get(covered, 0) for covered in covers)
        for covered in covers:
            share = weights.get(covered, 0) / total if total else 1 / len(covers)
            found[covered] = Decision(
                site,
                choice.candidate,
                share * choice.stored_bytes,
                share * choice.loss,
                tuple(covers),
            )
    return found


def by_column(sites: Sequence[Site], block: Site) -> Columns:
    """The linear sites of a block under their names inside it."""
    found: Columns = {}
    for site in sites:
        if site.kind is SiteKind.LINEAR and site.block == block.block:
            found.setdefault(name_inside(site.module, block.id), []).append(site)
    return found


def name_inside(module: str, block: str) -> str:
    """A module's path below its block's."""
    return module.removeprefix(f"{block}.")


def _is_block(site: Site) -> bool:
    return site.kind is SiteKind.BLOCK


def _columns(blocks: Sequence[Columns]) -> tuple[MapColumn, ...]:
    """All names; one that only later blocks have stands behind the one before it there."""
    order: list[str] = []
    most: Counter[str] = Counter()
    for found in blocks:
        place = 0
        for name, members in found.items():
            if name not in most:
                order.insert(place, name)
            place = order.index(name) + 1
            most[name] = max(most[name], len(members))
    return tuple(MapColumn(name=name, sites_per_block=most[name]) for name in order)


def _cell(
    column: int, members: Sequence[Site], decided: Mapping[str, Decision], block: str
) -> MapCell:
    nothing = Decision("", UNDECIDED.candidate, 0.0, 0.0, ())
    found = [decided.get(site.id, nothing) for site in members]
    counts = Counter(decision.candidate for decision in found)
    stored = sum(decision.stored_bytes for decision in found)
    weights = sum(site.weights for site in members)
    own = {site.id for site in members}
    together = {name for d in found if d.candidate != "drop" for name in d.covers} - own
    gone = {name_inside(d.site, block) for d in found if d.candidate == "drop" and d.site != block}
    return MapCell(
        column=column,
        candidate=max(counts, key=lambda name: (counts[name], name)),
        bits_per_weight=8 * stored / max(weights, 1),
        stored_bytes=round(stored),
        predicted_loss=sum(decision.loss for decision in found),
        sites=len(members),
        others=dict(counts.most_common()) if len(counts) > 1 else {},
        dropped_with=", ".join(sorted(gone)),
        decided_with=tuple(sorted({name.rpartition(".")[2] for name in together})),
    )


def _row(block: int, cells: Sequence[MapCell], found: Columns) -> MapRow:
    stored = sum(cell.stored_bytes for cell in cells)
    weights = sum(site.weights for members in found.values() for site in members)
    return MapRow(
        block=block,
        dropped=bool(cells) and all(_gone(cell) for cell in cells),
        bits_per_weight=8 * stored / max(weights, 1),
        stored_bytes=stored,
        cells=tuple(sorted(cells, key=lambda cell: cell.column)),
    )


def _gone(cell: MapCell) -> bool:
    return cell.candidate == "drop" and not cell.others


def _table(site: Site, decision: Decision) -> TableChoice | None:
    if site.kind is not SiteKind.TABLE:
        return None
    return TableChoice(
        site=site.id,
        role=site.role.value if site.role else "",
        candidate=decision.candidate,
        bits_per_weight=8 * decision.stored_bytes / max(site.weights, 1),
        stored_bytes=round(decision.stored_bytes),
        predicted_loss=decision.loss,
    )
