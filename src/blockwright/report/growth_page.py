"""The page of ``bench attention``: growth with the length in one plot, and the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from blockwright.report.attention_tables import Table
from blockwright.report.drawing import BOTTOM, LEFT, TOP, Chart, Label, Mark, Size, plain
from blockwright.report.page import digest, environment
from blockwright.report.scales import Tick, logarithmic

SIZE = Size(width=900, height=480, ticks=6)
NAMES = 150.0
"""Width left for the names behind the lines."""
APART = 14.0
"""Least distance of two names."""
Seconds = Mapping[str, Mapping[int, float]]
"""Name -> tokens -> seconds."""


def render_growth(
    seconds: Seconds, powers: Mapping[str, float], subject: str, tables: Sequence[Table] = ()
) -> str:
    """The page; ``powers``: the power of the tokens that each grows with; ``subject``: what was
    measured where."""
    templates = environment()
    style = templates.get_template("page.css").render()
    return templates.get_template("growth.html").render(
        chart=growth_chart(seconds, powers),
        powers=sorted(powers.items()),
        tables=tables,
        subject=subject,
        style=style,
        style_digest=digest(style),
    )


def growth_chart(seconds: Seconds, powers: Mapping[str, float]) -> Chart:
    """Both axes logarithmic: a power of the tokens is a straight line."""
    tokens = sorted({count for found in seconds.values() for count in found})
    x = logarithmic(tokens, LEFT, SIZE.width - NAMES)
    values = [taken for found in seconds.values() for taken in found.values()]
    y = logarithmic(values, SIZE.height - BOTTOM, TOP)
    lines, marks, ends = [], [], []
    for name, found in seconds.items():
        points = [(x(count), y(taken)) for count, taken in sorted(found.items())]
        path = "M" + "L".join(f"{a} {b}" for a, b in points)
        lines.append(("level" if name == "dense" else "frontier", path))
        for (a, b), (count, taken) in zip(points, sorted(found.items()), strict=True):
            marks.append(Mark(a, b, "tried", f"{name}, {count} tokens: {taken:.3g} s"))
        ends.append((points[-1][1], f"{name}: N^{powers[name]:.2f}"))
    return Chart(
        size=SIZE,
        description="Seconds by tokens; " + "; ".join(text for _, text in sorted(ends)),
        x_label="tokens",
        y_label="Seconds of one call, choosing included",
        x_ticks=tuple(Tick(x(count), str(count)) for count in tokens),
        y_ticks=y.ticks(SIZE.ticks, plain),
        marks=tuple(marks),
        lines=tuple(lines),
        labels=_spread(ends),
    )


def _spread(ends: list[tuple[float, str]]) -> tuple[Label, ...]:
    """Names behind the lines, none over another."""
    found: list[Label] = []
    for at, text in sorted(ends):
        lowest = found[-1].y + APART if found else at + 4
        found.append(Label(SIZE.width - NAMES + 10, max(at + 4, lowest), text, "tried"))
    return tuple(found)
