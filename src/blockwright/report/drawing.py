"""What a chart is drawn from: positions and marks.  Colours come from the page's style."""

from __future__ import annotations

from dataclasses import dataclass

from blockwright.report.scales import Tick
from blockwright.report.wording import small

LEFT, RIGHT, TOP, BOTTOM = 64.0, 16.0, 14.0, 44.0


@dataclass(frozen=True)
class Size:
    """Width and height of a drawing, and how many ticks fit."""

    width: float
    height: float
    ticks: int


@dataclass(frozen=True)
class Mark:
    """One point: ``kind`` is its shape and colour in the style."""

    x: float
    y: float
    kind: str
    title: str


@dataclass(frozen=True)
class Label:
    """Text beside a mark."""

    x: float
    y: float
    text: str
    kind: str
    anchor: str = "start"


@dataclass(frozen=True)
class Bar:
    """One bar, standing on the axis."""

    x: float
    y: float
    width: float
    height: float
    title: str


@dataclass(frozen=True)
class Chart:
    """Everything of one drawing."""

    size: Size
    description: str
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    marks: tuple[Mark, ...] = ()
    lines: tuple[tuple[str, str], ...] = ()
    """Kind and path."""
    bars: tuple[Bar, ...] = ()
    labels: tuple[Label, ...] = ()

    @property
    def left(self) -> float:
        return LEFT

    @property
    def right(self) -> float:
        return self.size.width - RIGHT

    @property
    def top(self) -> float:
        return TOP

    @property
    def bottom(self) -> float:
        return self.size.height - BOTTOM


def plain(value: float) -> str:
    """A round value: ``0.003``, ``1e-05`` as ``10⁻⁵``."""
    return small(value) if 0 < abs(value) < 1e-4 else f"{value:.6g}"
