"""Size against loss, and predicted against measured loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from blockwright.report.drawing import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    Chart,
    Label,
    Mark,
    Size,
    plain,
)
from blockwright.report.scales import Scale, linear, logarithmic
from blockwright.report.wording import small
from blockwright.types.figures import format_bytes
from blockwright.types.report import MeasuredPlan, PredictedPoint, Report

WIDE, NARROW = Size(760, 360, 9), Size(340, 300, 5)
SQUARE = Size(340, 300, 5)
LABEL_GAP = 11.0
LETTER = 7.4
"""Width of a letter of a label, about."""


@dataclass(frozen=True)
class Point:
    """A plan on the frontier's chart, before it has a position."""

    size: float
    loss: float
    kind: str
    title: str
    label: str = ""


def counts_bytes(report: Report) -> bool:
    """Whether the budget was one of bytes: then the frontier's axis is the size of the files."""
    limits = report.verdict.limits
    return bool(limits) and limits[0].name != "bits"


def metric_name(report: Report) -> str:
    """What is measured."""
    return "KL divergence, nats per token" if report.measures_kl else "relative error"


def frontier_charts(report: Report, size: Size) -> list[Chart]:
    """Size against loss: one chart where predicted and measured share a unit, else one for each.

    None for a single plan: that is no comparison.
    """
    predicted, measured = _predicted(report), _measured(report)
    points = [*predicted, *measured]
    if len(points) < 2:
        return []
    sizes = [point.size for point in points] + _asked(report)
    x = linear(sizes, LEFT, size.width - RIGHT)
    if report.comparable:
        return [_frontier(report, points, x, size, metric_name(report))]
    named = (
        (measured, f"measured {metric_name(report)}"),
        (predicted, f"predicted loss, {report.loss_unit}"),
    )
    return [_frontier(report, shown, x, size, label) for shown, label in named if shown]


def _asked(report: Report) -> list[float]:
    """The budget on the axis of sizes; empty where a plan was given."""
    for limit in report.verdict.limits[:1]:
        if limit.name == "ratio":
            return [limit.asked * report.verdict.original_size_bytes]
        if limit.name in ("bits", "size_bytes"):
            return [limit.asked]
    return []


def _size_of(report: Report, plan: PredictedPoint | MeasuredPlan) -> float:
    return float(plan.size_bytes) if counts_bytes(report) else plan.bits_per_weight


def _size_text(report: Report, value: float) -> str:
    return format_bytes(value) if counts_bytes(report) else f"{value:.2f} bits"


def _predicted(report: Report) -> list[Point]:
    return [
        Point(
            _size_of(report, point),
            point.predicted_loss,
            "predicted-uniform" if point.uniform else "predicted",
            f"{point.name}, {_size_text(report, _size_of(report, point))}:"
            f" predicted {small(point.predicted_loss)}",
        )
        for point in report.frontier
        if point.predicted_loss > 0
    ]


def _measured(report: Report) -> list[Point]:
    found = []
    for plan in report.measured:
        loss = plan.heldout_loss if plan.heldout_loss is not None else plan.selection_loss
        text = "held-out" if plan.heldout_loss is not None else "selection"
        kind = "taken" if plan.taken else "rival" if plan.uniform else "tried"
        title = (
            f"{plan.name}, {_size_text(report, _size_of(report, plan))}:"
            f" measured {small(loss)} on {text} text"
        )
        label = {"taken": "this plan", "rival": "uniform"}.get(kind, "")
        if plan.taken and plan.uniform:
            label = "this plan, uniform"
        if loss > 0:
            found.append(Point(_size_of(report, plan), loss, kind, title, label))
    return found


def _frontier(report: Report, points: Sequence[Point], x: Scale, size: Size, y_label: str) -> Chart:
    y = logarithmic([point.loss for point in points], size.height - BOTTOM, TOP)
    path = sorted((p.size, p.loss) for p in points if p.kind == "predicted")
    lines = [("frontier", _path([(x(a), y(b)) for a, b in path]))] if len(path) > 1 else []
    labels = _labels(points, x, y, size)
    for asked in _asked(report):
        lines.append(("asked", f"M{x(asked)} {TOP}V{size.height - BOTTOM}"))
        labels.append(Label(x(asked) + 5, TOP + 9, "asked", "asked"))
    return Chart(
        size=size,
        description=f"{y_label} against size, {len(points)} plans; the figures are in the table",
        x_label="size of the files" if counts_bytes(report) else "bits per weight",
        y_label=y_label,
        x_ticks=x.ticks(size.ticks, format_bytes if counts_bytes(report) else plain),
        y_ticks=y.ticks(7, plain),
        marks=tuple(Mark(x(p.size), y(p.loss), p.kind, p.title) for p in _by_weight(points)),
        lines=tuple(lines),
        labels=tuple(labels),
    )


def _by_weight(points: Sequence[Point]) -> list[Point]:
    """Drawn last is seen best: the plan itself."""
    order = ("predicted-uniform", "predicted", "tried", "rival", "taken")
    return sorted(points, key=lambda point: order.index(point.kind))


def _labels(points: Sequence[Point], x: Scale, y: Scale, size: Size) -> list[Label]:
    """The plan's name below its point, a rival's above; on the side where there is room."""
    found = []
    for point in points:
        if not point.label:
            continue
        width = LETTER * len(point.label)
        right = x(point.size) + LABEL_GAP + width < size.width
        below = point.kind == "taken"
        found.append(
            Label(
                x(point.size) + (LABEL_GAP if right else -LABEL_GAP),
                y(point.loss) + (16 if below else -8),
                point.label,
                point.kind,
                "start" if right else "end",
            )
        )
    return found


KEY = {
    "taken": "this plan, measured",
    "rival": "uniform plan, measured",
    "tried": "other plans, measured",
    "line": "best mix, predicted",
    "predicted-uniform": "uniform plans, predicted",
}


def frontier_key(report: Report) -> list[tuple[str, str]]:
    """The kinds of marks on the frontier's charts, and what they are."""
    kinds = {point.kind for point in (*_predicted(report), *_measured(report))}
    kinds = {"line" if kind == "predicted" else kind for kind in kinds}
    return [(kind, text) for kind, text in KEY.items() if kind in kinds]


def prediction_chart(report: Report, size: Size = SQUARE) -> Chart | None:
    """Predicted loss against the one measured on the selection text; on the diagonal they agree."""
    plans = [p for p in report.measured if p.predicted_loss > 0 and p.selection_loss > 0]
    if not report.comparable or len(plans) < 2:
        return None
    values = [v for p in plans for v in (p.predicted_loss, p.selection_loss)]
    x = logarithmic(values, LEFT, size.width - RIGHT, margin=0.15)
    y = logarithmic(values, size.height - BOTTOM, TOP, margin=0.15)
    marks = [
        Mark(
            x(p.predicted_loss),
            y(p.selection_loss),
            "taken" if p.taken else "rival" if p.uniform else "tried",
            f"{p.name}: predicted {small(p.predicted_loss)}, measured {small(p.selection_loss)}",
        )
        for p in sorted(plans, key=lambda plan: plan.taken)
    ]
    diagonal = f"M{x(x.low)} {y(y.low)}L{x(x.high)} {y(y.high)}"
    return Chart(
        size=size,
        description=f"Predicted against measured loss of {len(plans)} plans, with the diagonal",
        x_label="predicted, nats per token",
        y_label="measured, nats per token",
        x_ticks=x.ticks(size.ticks, plain),
        y_ticks=y.ticks(size.ticks, plain),
        marks=tuple(marks),
        lines=(("asked", diagonal),),
    )


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x} {y}" for x, y in points)
