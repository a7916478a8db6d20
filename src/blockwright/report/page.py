"""The page: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockwright.progress import format_seconds
from blockwright.report import verdict, wording
from blockwright.report.block_charts import FLAT_NARROW, FLAT_WIDE, drop_charts, share_charts
from blockwright.report.drawing import Chart, Size
from blockwright.report.frontier_charts import (
    NARROW,
    WIDE,
    frontier_charts,
    frontier_key,
    metric_name,
    prediction_chart,
)
from blockwright.report.map_view import map_view
from blockwright.types.figures import format_bytes
from blockwright.types.report import Report

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"


def render(report: Report) -> str:
    """The page of a report: every text in it is escaped, and only its own script may run."""
    templates = environment()
    style = templates.get_template("page.css").render()
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    return templates.get_template("page.html").render(
        report=report,
        verdict=report.verdict,
        absent=defaultdict(str, report.absent),
        title="/".join(Path(report.model).parts[-2:]).lstrip("/") or report.model,
        map=map_view(report),
        split_path=lambda name: name.rpartition("."),
        style=style,
        style_digest=digest(style),
        script=script,
        script_digest=digest(script),
        **_figures(report),
        **_drawings(report),
    )


def _figures(report: Report) -> dict[str, Any]:
    """What stands in the verdict and in the table of speeds."""
    return {
        "headline": verdict.sentence(report.verdict),
        "asked": verdict.asked(report.verdict),
        "got": verdict.got(report.verdict),
        "lost": verdict.lost(report.verdict),
        "comparison": verdict.comparison(report),
        "speeds": verdict.speed_rows(report),
        "metric": metric_name(report),
        "has_uniform": any(block.uniform_share is not None for block in report.importance),
        "has_drops": any(block.drop_loss is not None for block in report.importance),
    }


def _drawings(report: Report) -> dict[str, Any]:
    """The charts; what fills a desk's width is drawn again for phones."""

    def both(draw: Callable[[Report, Size], list[Chart]], wide: Size, narrow: Size) -> Any:
        return {"wide": draw(report, wide), "narrow": draw(report, narrow)}

    drawings = {
        "frontier": both(frontier_charts, WIDE, NARROW),
        "shares": both(share_charts, FLAT_WIDE, FLAT_NARROW),
        "drops": both(drop_charts, FLAT_WIDE, FLAT_NARROW),
        "prediction": prediction_chart(report),
    }
    return {"drawings": drawings, "frontier_key": frontier_key(report)}


def digest(text: str) -> str:
    """What the page's security policy names its style and its script by."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def environment() -> Environment:
    """Templates, with what they write figures by."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(_filters())
    return made


def _filters() -> Mapping[str, Any]:
    return {
        "bytes": format_bytes,
        "small": wording.small,
        "column": wording.column,
        "share": wording.share,
        "grouped": wording.grouped,
        "count": wording.count,
        "ratio": wording.ratio,
        "seconds": format_seconds,
    }
