"""The plot of growth: one line per name, all lengths on it."""

from __future__ import annotations

import itertools

from blockwright.report.attention_tables import Table
from blockwright.report.growth_page import APART, growth_chart, render_growth
from tests.report.page_reader import read_page

SECONDS = {
    "dense": {4096: 1.0, 8192: 4.0, 16384: 16.0},
    "llsa": {4096: 0.5, 8192: 1.0, 16384: 2.0},
    "gla": {4096: 0.5, 8192: 1.0, 16384: 2.01},
}
POWERS = {"dense": 2.0, "llsa": 1.0, "gla": 1.0}


def test_powers_are_straight_lines_of_their_slope() -> None:
    chart = growth_chart(SECONDS, POWERS)
    assert [kind for kind, _ in chart.lines] == ["level", "frontier", "frontier"]
    rises = []
    for _, path in chart.lines[:2]:
        points = [tuple(map(float, point.split())) for point in path[1:].split("L")]
        first, second = ((b[1] - a[1]) for a, b in itertools.pairwise(points))
        assert abs(first - second) < 0.3
        rises.append(first)
    assert abs(rises[0] / rises[1] - 2) < 0.01
    heights = sorted(label.y for label in chart.labels)
    assert all(b - a >= APART for a, b in itertools.pairwise(heights))


def test_the_page_names_every_line() -> None:
    table = Table(
        title="Speed", lead="By policy.", head=("policy", "time"), rows=(("`mean`", "2x"),)
    )
    found = read_page(render_growth(SECONDS, POWERS, "one machine", [table]))
    assert "one machine" in found.text
    assert found.all("table")[0].rows() == [["mean", "2x"]]
    for name in ("dense: N^2.00", "llsa: N^1.00", "gla: N^1.00", "16384"):
        assert name in found.text
