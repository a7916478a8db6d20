"""The page of tiles: what each head of one block visits, in one HTML file that needs nothing else.

Rows are queries from top to bottom, columns keys from left to right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from blockwright.report.page import digest, environment

SHADES = 9
"""Shades of a cell, by the share of its tiles that is visited."""
CELL = 4
"""Side of a cell in the drawing's units."""
Cells = Sequence[Sequence[float | None]]
"""Share visited by row and column; None where nothing is visible."""


@dataclass(frozen=True, kw_only=True)
class HeadTiles:
    """One head."""

    head: int
    density: float
    recall: float
    cells: Cells


@dataclass(frozen=True, kw_only=True)
class TilePage:
    """One block of a model that attends by a policy."""

    model: str
    policy: str
    block: int
    tokens: int
    text: str
    """What was read."""
    heads: tuple[HeadTiles, ...]


@dataclass(frozen=True)
class HeadView:
    """How a head is drawn."""

    head: HeadTiles
    width: int
    height: int
    unvisited: str
    paths: tuple[tuple[int, str], ...]
    """Shade and path of the visited cells."""


def render_tiles(page: TilePage) -> str:
    """The page: every text in it is escaped, and nothing in it runs."""
    templates = environment()
    style = templates.get_template("tiles.css").render()
    mean = sum(head.density for head in page.heads) / max(len(page.heads), 1)
    return templates.get_template("tiles.html").render(
        page=page,
        views=[view_of(head) for head in page.heads],
        mean_density=mean,
        style=style,
        style_digest=digest(style),
        shades=range(SHADES),
    )


def view_of(head: HeadTiles) -> HeadView:
    """Cells of one shade are one path."""
    rows, columns = len(head.cells), max((len(row) for row in head.cells), default=0)
    by_shade: dict[int, list[str]] = {}
    for row, shares in enumerate(head.cells):
        for first, length, shade in _runs([_shade(share) for share in shares]):
            if shade is not None:
                path = f"M{CELL * first} {CELL * row}h{CELL * length}v{CELL}h{-CELL * length}z"
                by_shade.setdefault(shade, []).append(path)
    unvisited = "".join(by_shade.pop(-1, []))
    paths = tuple((shade, "".join(found)) for shade, found in sorted(by_shade.items()))
    return HeadView(head, CELL * columns, CELL * rows, unvisited, paths)


def _shade(share: float | None) -> int | None:
    """-1: visible, and not visited."""
    if share is None:
        return None
    return -1 if share <= 0 else min(SHADES - 1, int(share * SHADES))


def _runs(shades: Sequence[int | None]) -> list[tuple[int, int, int | None]]:
    """First cell, length and shade of every run of equal cells."""
    found: list[tuple[int, int, int | None]] = []
    for place, shade in enumerate(shades):
        if found and found[-1][2] == shade:
            first, length, _ = found[-1]
            found[-1] = (first, length + 1, shade)
        else:
            found.append((place, 1, shade))
    return found
