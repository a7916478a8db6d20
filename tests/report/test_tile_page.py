"""The page of tiles draws what was visited, and nothing in it runs."""

from __future__ import annotations

from blockwright.report.tile_page import CELL, HeadTiles, TilePage, render_tiles, view_of
from tests.report.page_reader import read_page

CELLS = ((1.0, None, None), (1.0, 0.4, None), (0.0, 0.0, 1.0))


def page(model: str = "model") -> TilePage:
    head = HeadTiles(head=1, density=0.6, recall=0.95, cells=CELLS)
    return TilePage(
        model=model, policy="mean@keep=2", block=3, tokens=96, text="a text", heads=(head,)
    )


def test_cells_are_drawn_where_they_stand() -> None:
    view = view_of(page().heads[0])
    assert (view.width, view.height) == (3 * CELL, 3 * CELL)
    assert view.unvisited == f"M0 {2 * CELL}h{2 * CELL}v{CELL}h-{2 * CELL}z"
    shades = dict(view.paths)
    assert shades[3] == f"M{CELL} {CELL}h{CELL}v{CELL}h-{CELL}z"
    assert shades[8].count("M") == 3


def test_the_page_says_what_was_read_and_escapes_it() -> None:
    html = render_tiles(page("<script>alert(1)</script>"))
    assert "<script" not in html
    found = read_page(html)
    assert found.all("h1")[0].text == "mean@keep=2"
    assert "Head 1 60.0% of the tiles, 95.0% of the probability" in found.text
    assert len(found.all("svg")) == 1
    policy = next(m for m in found.all("meta") if "http-equiv" in m.attributes)
    assert policy.attributes["content"].startswith("default-src 'none'; style-src 'sha256-")
