"""What ``bench attention`` measured, as tables: for its page and for the documentation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Figures = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Texts of a table."""

    title: str
    lead: str
    """What is compared, in one or two sentences."""
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def attention_tables(figures: Figures) -> tuple[Table, ...]:
    """Of ``figures`` as printed with ``--json``, without the policies' own options."""
    return (
        _speed(figures["at_density"]),
        _winning(figures["densest_that_wins"]),
        _recall(figures["at_eight_tiles"]),
        _growth(figures["growth"]),
        *_model(figures.get("shipped_model", {})),
    )


def _speed(rows: Sequence[Figures]) -> Table:
    found = [
        (
            f"{row['setting']['tokens']:,}",
            f"`{row['policy']}`",
            f"{row['density']:.3f}",
            f"{row['mass_recall']:.3f}",
            f"{row['ratio']:.2f}x",
            f"{row['promised_ratio']:g}x",
            *_peaks(row),
        )
        for row in rows
    ]
    return Table(
        title="Time and memory beside fused dense attention",
        lead="Mixed planted data, bfloat16, causal; medians taken in turn with dense attention, "
        "choosing included. Peak: inputs and what one call takes beyond them.",
        head=("tokens", "policy", "density", "recall", "time", "promised", "peak", "promised"),
        rows=tuple(found),
    )


def _peaks(row: Figures) -> tuple[str, str]:
    if not row["peak_bytes"] or not row["dense_peak_bytes"]:
        return "", ""
    promised = row["promised_peak_ratio"]
    ratio = f"{row['peak_bytes'] / row['dense_peak_bytes']:.2f}x"
    return ratio, f"{promised:g}x" if promised else ""


def _winning(rows: Sequence[Figures]) -> Table:
    found = []
    for row in rows:
        tried = ", ".join(f"{each['ratio']:.2f}x at {each['density']:.2f}" for each in row["tried"])
        won: tuple[str, ...] = ("none", "", "")
        if row["density"] is not None:
            won = tuple(f"{row[k]:.3f}" for k in ("density", "mass_recall", "output_error"))
        found.append((f"`{row['policy']}`", *won, tried))
    return Table(
        title="The greatest density that is faster than dense",
        lead="Policies by token, by single keys and by rule, from dense to sparse; those of images "
        "and video (the last ones) beside bidirectional attention.",
        head=("policy", "density", "recall", "output error", "tried"),
        rows=tuple(found),
    )


def _recall(table: Mapping[str, Mapping[str, Figures]]) -> Table:
    names = list(next(iter(table.values())))
    rows = [(name, *(_kept(row[name]) for row in table.values())) for name in names]
    return Table(
        title="Recall and output error at equal density",
        lead="Eight tiles of 64 keys per list, own and first among them, 4,096 tokens, one head, "
        "fp32, mean of three seeds.",
        head=("policy", *table),
        rows=tuple(rows),
    )


def _kept(found: Figures) -> str:
    return f"{found['mass_recall']:.3f} / {found['output_error']:.2f}"


def _growth(growth: Mapping[str, Figures]) -> Table:
    seconds = {name: {int(n): s for n, s in row["seconds"].items()} for name, row in growth.items()}
    lengths = sorted({tokens for found in seconds.values() for tokens in found})
    rows = [
        (name, *(f"{found[n]:.2f} s" for n in lengths), f"{growth[name]['power']:.2f}")
        for name, found in seconds.items()
    ]
    return Table(
        title="Growth with the length",
        lead="One call; attention in bfloat16 and bidirectional, mixers in fp32. The last column "
        "is the power of the tokens that the time grows with.",
        head=("", *(f"{n:,}" for n in lengths), "power"),
        rows=tuple(rows),
    )


def _model(found: Figures) -> Iterator[Table]:
    judged = {name: row for name, row in found.items() if isinstance(row, Mapping)}
    rows = [
        (f"`{name}`", f"{row['density']:.2f}", f"{100 * (row['ratio'] - 1):+.2f}%")
        for name, row in judged.items()
        if "ratio" in row
    ]
    if rows:
        yield Table(
            title="Perplexity of the model that ships",
            lead=f"2,048 tokens, {found['text']}.",
            head=("policy", "density", "perplexity"),
            rows=tuple(rows),
        )
