"""The figures as people read them, on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.peers.quality import means

Row = dict[str, Any]


def print_quality(figures: Row, console: Console) -> None:
    """Mean KL, bits and seconds of everybody; then the ratios."""
    rows = figures["rows"]
    seeds = len(figures["seeds"])
    table = table_of(
        f"KL on held-out text, nats per token, mean of {seeds} seeds",
        ("format", "who"),
        ("bits", "KL", "excess loss", "seconds"),
    )
    for format in dict.fromkeys(row["format"] for row in rows):
        excess = means(rows, format, "excess_loss")
        bits = means(rows, format, "bits")
        for who, divergence in means(rows, format, "kl").items():
            figures_of_row = (f"{bits[who]:.3f}", f"{divergence:.5f}", f"{excess[who]:.5f}")
            table.add_row(format, who, *figures_of_row, _time(rows, format, who))
    console.print(table)
    for row in figures["ratios"]:
        console.print(
            f"{row['format']}: KL of {row['preset']} over {row['rival']} {row['ratio']:.2f}"
            f"{judged(row['ratio'], row['bound'])}"
        )
    print_errors([(f"{row['format']} {row['who']}", row) for row in rows], console)


def print_time(figures: Row, console: Console) -> None:
    """Times and peaks, their ratios, and the second budget."""
    console.print(f"{figures['model']}, {figures['tokens']} tokens, {figures['threads']} threads")
    ours, peers = figures["blockwright"], figures["peers"]
    table = table_of("compressing to 4 bits", ("who",), ("seconds", "peak memory, GB"))
    table.add_row("fit", f"{ours['fit_seconds']:.1f}", f"{ours['tree_bytes'] / 1e9:.2f}")
    for name, row in peers.items():
        if "error" not in row:
            table.add_row(name, f"{row['seconds']:.1f}", f"{row['tree_bytes'] / 1e9:.2f}")
    console.print(table)
    for row in figures["ratios"]:
        console.print(
            f"fit over {row['rival']}: time {row['time']:.2f}"
            f"{judged(row['time'], row.get('time_bound'))}, memory {row['memory']:.2f}"
            f"{judged(row['memory'], row.get('memory_bound'))}"
        )
    second, bound = figures["second_budget_seconds"], figures["second_budget_bound_seconds"]
    console.print(f"second budget {second:.1f} s{judged(second, bound)}")
    print_errors(list(peers.items()), console)


def print_decode(figures: Row, console: Console) -> None:
    """Tokens per second and memory against bf16; then ours over each rival."""
    table = table_of(
        f"{figures['model']}, batch 1, {figures['threads']} threads, against bf16",
        ("who",),
        ("decode", "prefill", "memory", "tokens/s", "logits differ by"),
    )
    for row in figures["rows"]:
        if "error" not in row:
            table.add_row(
                row["who"],
                *(f"{row[f'{name}_ratio']:.2f}x" for name in ("decode", "prefill", "resident")),
                f"{row['decode_tokens_per_second']:.2f}",
                f"{row['logits_difference']:.3f}",
            )
    console.print(table)
    for row in figures["ratios"]:
        console.print(
            f"{row['who']} over {row['rival']}: decode {row['decode']:.2f}"
            f"{judged_least(row['decode'], row['bound'])}, prefill {row['prefill']:.2f}, memory"
            f" {row['resident']:.2f}"
        )
    print_errors([(row["who"], row) for row in figures["rows"]], console)


def table_of(title: str, names: Sequence[str], figures: Sequence[str]) -> Table:
    """Names on the left, figures on the right."""
    table = Table(title=title)
    for name in names:
        table.add_column(name)
    for name in figures:
        table.add_column(name, justify="right")
    return table


def print_errors(rows: Sequence[tuple[str, Row]], console: Console) -> None:
    """What failed, and why."""
    for name, row in rows:
        if "error" in row:
            log = f"; {row['log']}" if "log" in row else ""
            console.print(f"{name}: {row['error']}{log}", markup=False)


def judged(value: float, bound: float | None) -> str:
    """`` (at most 0.7: holds)``; nothing without a bound."""
    if bound is None:
        return ""
    return f" (at most {bound:g}: {'holds' if value <= bound else 'missed'})"


def judged_least(value: float, bound: float | None) -> str:
    """`` (at least 0.9: holds)``; nothing without a bound."""
    if bound is None:
        return ""
    return f" (at least {bound:g}: {'holds' if value >= bound else 'missed'})"


def _time(rows: Sequence[Row], format: str, who: str) -> str:
    """Mean seconds of quantizing or fitting; empty where nobody measured them."""
    names = ("quantize_seconds", "fit_seconds")
    found = [
        row[name]
        for row in rows
        for name in names
        if row["format"] == format and row["who"] == who and name in row
    ]
    return f"{sum(found) / len(found):.0f}" if found else ""
