"""The map as it is drawn: texts, shades, and what is told about a cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from blockwright.report.wording import grouped, ranges, share, small, split_candidate
from blockwright.types.figures import format_bytes
from blockwright.types.report import MapCell, MapRow, Report

SHADES = 9
FEWEST_BITS, MOST_BITS = 2.0, 8.5
"""Bits per weight of the first and of the last shade."""


@dataclass(frozen=True)
class CellView:
    """One cell: what stands in it, its style, and its details."""

    text: str
    method: str
    shade: str
    detail: str


@dataclass(frozen=True)
class RowView:
    """One block."""

    block: int
    bits: str
    dropped: bool
    cells: tuple[CellView | None, ...]
    """By column; None where the block has no such site."""


@dataclass(frozen=True)
class LegendEntry:
    """A candidate and how often it was chosen."""

    candidate: str
    shade: str
    sites: int
    bits: float
    stored_bytes: int


@dataclass(frozen=True)
class MapView:
    """The whole map."""

    columns: tuple[tuple[str, str], ...]
    """Name, and how many sites stand there in each block where it is more than one."""
    rows: tuple[RowView, ...]
    legend: tuple[LegendEntry, ...]
    one_method: str
    """The method of all built candidates, if it is one: then the cells leave it out."""
    dropped: str
    """Which blocks and parts are gone; empty where none is."""


def map_view(report: Report) -> MapView:
    """The map's rows as texts."""
    cells = [cell for row in report.map.rows for cell in row.cells]
    methods = {split_candidate(cell.candidate)[1] for cell in cells} - {""}
    one_method = next(iter(methods)) if len(methods) == 1 else ""
    total = sum(cell.predicted_loss for cell in cells)
    columns = [
        (c.name, f"×{grouped(c.sites_per_block)}" if c.sites_per_block > 1 else "")
        for c in report.map.columns
    ]
    names = [name for name, _ in columns]
    return MapView(
        columns=tuple(columns),
        rows=tuple(_row(row, names, bool(one_method), total) for row in report.map.rows),
        legend=_legend(cells),
        one_method=one_method,
        dropped=_dropped(report.map.rows),
    )


def _dropped(rows: Sequence[MapRow]) -> str:
    """``2 blocks, 3 and 4; self_attn of block 1``"""
    whole = [row.block for row in rows if row.dropped]
    parts: dict[str, list[int]] = {}
    for row in rows:
        names = {cell.dropped_with for cell in row.cells if _is_gone(cell)} - {""}
        for name in sorted(names) if not row.dropped else ():
            parts.setdefault(name, []).append(row.block)
    found = [f"{_blocks(len(whole))} {ranges(whole)}"] if whole else []
    found += [f"{name} of {_blocks(len(of))} {ranges(of)}" for name, of in parts.items()]
    return "; ".join(found)


def _is_gone(cell: MapCell) -> bool:
    return cell.candidate == "drop" and not cell.others


def _blocks(number: int) -> str:
    return "block" if number == 1 else f"{number} blocks,"


def shade(candidate: str, bits: float) -> str:
    """Style of a cell by its bits; what is untouched or gone has its own."""
    if candidate in ("keep", "drop"):
        return candidate
    place = (bits - FEWEST_BITS) / (MOST_BITS - FEWEST_BITS) * (SHADES - 1)
    return f"s{min(SHADES - 1, max(0, round(place)))}"


def _row(row: MapRow, names: list[str], short: bool, total: float) -> RowView:
    found = {cell.column: cell for cell in row.cells}
    cells = [
        _cell(row.block, name, found[index], short, total) if index in found else None
        for index, name in enumerate(names)
    ]
    bits = "dropped" if row.dropped else f"{row.bits_per_weight:.2f}"
    return RowView(block=row.block, bits=bits, dropped=row.dropped, cells=tuple(cells))


def _cell(block: int, name: str, cell: MapCell, short: bool, total: float) -> CellView:
    text, method = split_candidate(cell.candidate)
    if cell.others:
        text, method = f"{len(cell.others)} kinds", ""
    return CellView(
        text={"drop": "dropped"}.get(text, text),
        method="" if short else method,
        shade=shade(cell.candidate, cell.bits_per_weight),
        detail=f"block {block}, {name}: {_told(cell, total)}",
    )


def _told(cell: MapCell, total: float) -> str:
    kinds = ", ".join(f"{name} at {count}" for name, count in cell.others.items())
    parts = [kinds or cell.candidate]
    if _is_gone(cell):
        return f"dropped with all of {cell.dropped_with or 'its block'}"
    parts.append(f"{cell.bits_per_weight:.2f} bits per weight")
    parts.append(format_bytes(cell.stored_bytes))
    loss = f"predicted loss {small(cell.predicted_loss)}"
    parts.append(f"{loss} ({share(cell.predicted_loss / total)})" if total > 0 else loss)
    if cell.sites > 1:
        parts.append(f"{grouped(cell.sites)} experts")
    if cell.decided_with:
        parts.append(f"decided together with {', '.join(cell.decided_with)}")
    return " · ".join(parts)


def _legend(cells: list[MapCell]) -> tuple[LegendEntry, ...]:
    found: dict[str, list[MapCell]] = {}
    for cell in cells:
        found.setdefault("several kinds" if cell.others else cell.candidate, []).append(cell)
    entries = [
        LegendEntry(
            candidate={"drop": "dropped"}.get(name, name),
            shade=shade(members[0].candidate, members[0].bits_per_weight),
            sites=sum(cell.sites for cell in members),
            bits=sum(cell.bits_per_weight for cell in members) / len(members),
            stored_bytes=sum(cell.stored_bytes for cell in members),
        )
        for name, members in found.items()
    ]
    return tuple(sorted(entries, key=lambda entry: (entry.bits, entry.candidate)))
