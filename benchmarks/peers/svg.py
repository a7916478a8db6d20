"""Plots as SVG files that Markdown pages show, in light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from blockwright.report.drawing import plain
from blockwright.report.scales import Scale, linear, logarithmic

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 64.0, 190.0, 16.0, 48.0
BAR, GAP, NAME_WIDTH, VALUE_WIDTH = 20, 8, 150.0, 60.0
OURS_COLOUR = "#d1495b"
COLOURS = ("#30638e", "#edae49", "#00798c", "#8d6a9f", "#7a9e3b", "#a0522d", "#5b5b5b", "#c77dba")
STYLE = """<style>
text { font: 12px sans-serif; fill: #24292f } .axis { stroke: #8c959f } .grid { stroke: #d8dee4 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .grid { stroke: #30363d } }
</style>"""


@dataclass(frozen=True)
class Point:
    """One mark."""

    series: str
    x: float
    y: float
    ours: bool = False


def scatter(points: Sequence[Point], x_label: str, y_label: str) -> str:
    """Points on two axes, the second logarithmic, with a key on the right; ours are squares."""
    x = linear([point.x for point in points], LEFT, WIDTH - RIGHT)
    y = logarithmic([point.y for point in points], HEIGHT - BOTTOM, TOP)
    series = list(dict.fromkeys(point.series for point in points))
    colours = colours_of(points, series)
    parts = [*axes(x, y, x_label, y_label)]
    for point in points:
        title = f"{point.series}: {plain(point.x)}, {point.y:.3g}"
        parts.append(mark(x(point.x), y(point.y), colours[point.series], point.ours, title))
    ours = {point.series for point in points if point.ours}
    for index, name in enumerate(series):
        at = TOP + 10 + 18 * index
        parts.append(mark(WIDTH - RIGHT + 18, at, colours[name], name in ours, name))
        parts.append(text(WIDTH - RIGHT + 30, at + 4, name))
    return drawing(WIDTH, HEIGHT, f"{y_label} against {x_label}", parts)


def bars(rows: Sequence[tuple[str, float, bool]], label: str) -> str:
    """Lying bars from zero: name, value, whether it is ours."""
    height = (BAR + GAP) * len(rows) + 40
    most = max(value for _, value, _ in rows)
    unit = (WIDTH - NAME_WIDTH - VALUE_WIDTH) / most
    parts = [text(NAME_WIDTH, 16, label)]
    for index, (name, value, ours) in enumerate(rows):
        at = 28 + (BAR + GAP) * index
        colour = OURS_COLOUR if ours else COLOURS[0]
        parts.append(text(NAME_WIDTH - 8, at + 14, name, "end"))
        parts.append(
            f'<rect x="{NAME_WIDTH}" y="{at}" width="{value * unit:.1f}" height="{BAR}"'
            f' fill="{colour}"/>'
        )
        parts.append(text(NAME_WIDTH + value * unit + 6, at + 14, f"{value:.2f}"))
    return drawing(WIDTH, height, label, parts)


def colours_of(points: Sequence[Point], series: Sequence[str]) -> dict[str, str]:
    """Ours share one colour in two shades of opacity; others take turns."""
    ours = {point.series for point in points if point.ours}
    others = [name for name in series if name not in ours]
    found = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(others)}
    return found | dict.fromkeys(ours, OURS_COLOUR)


def axes(x: Scale, y: Scale, x_label: str, y_label: str) -> list[str]:
    """Lines, ticks and what they count."""
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = [f'<path class="axis" fill="none" d="M{LEFT} {TOP}V{bottom}H{right}"/>']
    for tick in x.ticks(8, plain):
        parts.append(f'<path class="grid" d="M{tick.at} {TOP}V{bottom}"/>')
        parts.append(text(tick.at, bottom + 18, tick.text, "middle"))
    for tick in y.ticks(8, plain):
        parts.append(f'<path class="grid" d="M{LEFT} {tick.at}H{right}"/>')
        parts.append(text(LEFT - 6, tick.at + 4, tick.text, "end"))
    parts.append(text((LEFT + right) / 2, HEIGHT - 8, x_label, "middle"))
    middle = (TOP + bottom) / 2
    parts.append(
        f'<text transform="rotate(-90)" x="{-middle}" y="14" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    return parts


def mark(x: float, y: float, colour: str, ours: bool, title: str) -> str:
    """A square for ours, a circle for others."""
    inside = f"<title>{escape(title)}</title>"
    if ours:
        return (
            f'<rect x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10" fill="{colour}">'
            f"{inside}</rect>"
        )
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}">{inside}</circle>'


def text(x: float, y: float, words: str, anchor: str = "start") -> str:
    """Words at a place."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def drawing(width: int, height: int, description: str, parts: Sequence[str]) -> str:
    """The whole file."""
    lines = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"'
        f' aria-label="{escape(description, quote=True)}">\n{STYLE}\n{lines}\n</svg>\n'
    )
