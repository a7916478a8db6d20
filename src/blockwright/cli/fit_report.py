"""What a fit prints for people: the original, the fitted model and the uniform one side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from rich.table import Table

from blockwright.cli.output import (
    format_bytes,
    make_table,
    print_json,
    print_line,
    print_table,
)
from blockwright.progress import format_seconds
from blockwright.types import FitResult, LimitFigures, Price, Quality, Speed

Row = tuple[str, str, str, str]


def print_fit(result: FitResult) -> None:
    """The table, where the folder is, and what the user must know."""
    print_table(fit_table(result))
    print_line("")
    print_line(
        f"took {format_seconds(result.seconds)}, peak memory"
        f" {format_bytes(result.peak_rss_bytes)}, variants built {result.library_misses},"
        f" reused {result.library_hits}"
    )
    if line := limits_line(result.limits):
        print_line(line)
    if result.verified_tensors is not None:
        print_line(f"lossless: {result.verified_tensors} tensors hashed, each bit for bit the same")
    for note in result.notes:
        print_line(f"note: {note}")
    for variant, reason in result.unavailable.items():
        print_line(f"unavailable: {variant}: {reason}")
    print_line(f"plan:   {result.plan_path}")
    print_line(f"folder: {result.out}")
    print_line(f"report: {result.report_path}")


def fit_table(result: FitResult) -> Table:
    """One row per figure; rows that were measured for none of the models are left out."""
    uniform = f"uniform {result.uniform_candidate}" if result.uniform_candidate else "uniform"
    rows = [_size_row(result), _bits_row(result), *_quality_rows(result), *_speed_rows(result)]
    measured = [row for row in rows if any(cell != "-" for cell in row[1:])]
    return make_table(("", "original", "fitted", uniform), measured)


def limits_line(figures: LimitFigures) -> str:
    """Predicted and measured memory and speed; empty when neither is known."""
    parts = []
    if figures.ram_bytes_predicted is not None:
        measured = figures.ram_bytes_measured
        found = "" if measured is None else f" (measured {format_bytes(measured)})"
        parts.append(f"memory {format_bytes(figures.ram_bytes_predicted)} predicted{found}")
    if figures.speedup_predicted is not None:
        speedup = figures.speedup_measured
        found = "" if speedup is None else f" (measured {speedup:.2f})"
        parts.append(f"speedup {figures.speedup_predicted:.2f} predicted{found}")
    return f"{figures.workload}: {', '.join(parts)}" if parts else ""


def print_price(price: Price, *, as_json: bool) -> None:
    """Memory, disk and time before the long part."""
    if as_json:
        print_json(asdict(price))
        return
    rows = [
        ("peak memory", format_bytes(price.memory_bytes)),
        ("disk", format_bytes(price.disk_bytes)),
        ("time", format_seconds(price.seconds)),
        *((f"  {stage}", format_seconds(seconds)) for stage, seconds in price.parts.items()),
    ]
    print_table(make_table(("estimate, from one probed block", ""), rows))


def _size_row(result: FitResult) -> Row:
    original, fitted = result.original_size_bytes, result.size_bytes
    share = f" ({fitted / original:.1%})" if original else ""
    return ("size", format_bytes(original), format_bytes(fitted) + share, "-")


def _bits_row(result: FitResult) -> Row:
    uniform = result.bits_per_weight_uniform
    return ("bits per weight", "-", f"{result.bits_per_weight:.3f}", _cell(uniform, "{:.3f}"))


def _quality_rows(result: FitResult) -> list[Row]:
    columns = (result.original, result.fitted, result.uniform)

    def row(name: str, pick: Callable[[Quality], float | None], spec: str) -> Row:
        first, second, third = (_cell(pick(q), spec) if q else "-" for q in columns)
        return (name, first, second, third)

    return [
        row("perplexity", lambda quality: quality.perplexity, "{:.3f}"),
        row("KL, nats per token", lambda quality: quality.kl_divergence, "{:.5f}"),
        row("top-1 agreement", lambda quality: quality.top1_agreement, "{:.2%}"),
        row("relative error", lambda quality: quality.relative_error, "{:.5f}"),
        row("cosine", lambda quality: quality.cosine, "{:.5f}"),
    ]


def _speed_rows(result: FitResult) -> list[Row]:
    columns = (result.original_speed, result.fitted_speed)

    def row(name: str, pick: Callable[[Speed], str]) -> Row:
        first, second = (pick(speed) if speed else "-" for speed in columns)
        return (name, first, second, "-")

    return [
        row("prefill, tokens/s", lambda speed: _cell(speed.prefill_tokens_per_second, "{:.1f}")),
        row("decode, tokens/s", lambda speed: _cell(speed.decode_tokens_per_second, "{:.1f}")),
        row("resident memory", lambda speed: format_bytes(speed.resident_bytes)),
    ]


def _cell(value: float | None, spec: str) -> str:
    return "-" if value is None else spec.format(value)
