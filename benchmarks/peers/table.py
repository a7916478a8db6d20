"""The figures as people read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.peers.quality import means


def print_quality(figures: dict[str, Any], console: Console) -> None:
    """Mean KL, bits and seconds of everybody; then the ratios."""
    rows = figures["rows"]
    seeds = len(figures["seeds"])
    table = Table(title=f"KL on held-out text, nats per token, mean of {seeds} seeds")
    for name in ("format", "who", "bits", "KL", "seconds"):
        table.add_column(name, justify="left" if name in ("format", "who") else "right")
    for format in dict.fromkeys(row["format"] for row in rows):
        for who, divergence in means(rows, format, "kl").items():
            bits = means(rows, format, "bits")[who]
            table.add_row(format, who, f"{bits:.3f}", f"{divergence:.5f}", _time(rows, format, who))
    console.print(table)
    for row in figures["ratios"]:
        console.print(
            f"{row['format']}: KL of {row['preset']} over {row['rival']} {row['ratio']:.2f}"
            f"{judged(row['ratio'], row['bound'])}"
        )


def print_time(figures: dict[str, Any], console: Console) -> None:
    """Both times, their ratio, and the second budget."""
    ours, theirs = figures["blockwright"], figures["gptqmodel"]
    console.print(f"{figures['model']}, {figures['tokens']} tokens, {figures['threads']} threads")
    console.print(
        f"fit --preset fast {ours['fit_seconds']:.1f} s (evaluation, left out:"
        f" {ours['evaluation_seconds']:.1f} s); GPTQModel int4-g128 {theirs['seconds']:.1f} s"
    )
    ratio, second = figures["time_ratio"], figures["second_budget_seconds"]
    console.print(f"ratio {ratio:.2f}{judged(ratio, figures['time_ratio_bound'])}")
    bound = figures["second_budget_bound_seconds"]
    console.print(f"second budget {second:.1f} s{judged(second, bound)}")


def judged(value: float, bound: float | None) -> str:
    """`` (at most 0.7: holds)``; nothing without a bound."""
    if bound is None:
        return ""
    return f" (at most {bound:g}: {'holds' if value <= bound else 'missed'})"


def _time(rows: Sequence[dict[str, Any]], format: str, who: str) -> str:
    """Mean seconds of quantizing or fitting; empty where nobody measured them."""
    names = ("quantize_seconds", "fit_seconds")
    found = [
        row[name]
        for row in rows
        for name in names
        if row["format"] == format and row["who"] == who and name in row
    ]
    return f"{sum(found) / len(found):.0f}" if found else ""
