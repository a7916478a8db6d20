"""Writes the README's figures from what ``make bench`` measured.

    python -m benchmarks.readme build/bench

Between the two marks in README.md stands what this writes, nothing else does.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- figures: make figures -->", "<!-- end of figures -->"
Figures = Mapping[str, Any]


def section(folder: Path) -> str:
    """All tables for which there are figures, and the machine that they were taken on."""
    found = {path.stem: json.loads(path.read_text("utf-8")) for path in folder.glob("*.json")}
    parts = [
        write(found[name]["figures"]) + f"\n{measured_on(name, found[name]['machine'])}\n"
        for name, write in TABLES.items()
        if name in found
    ]
    return "\n".join(parts)


def measured_on(name: str, machine: Figures) -> str:
    """The line under a table."""
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    what = f"{machine['processor']} ({machine['capability']}), {threads}"
    return (
        f"`python -m {COMMANDS.get(name, f'benchmarks {name}')}`: {what}, torch {machine['torch']}."
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def decode(figures: Figures) -> str:
    """Speed and memory of packed formats."""
    rows = [
        [
            name,
            f"{row['decode_ratio']:.2f}x",
            f"{row['decode_bound']}x" if row["decode_bound"] else "",
            f"{row['resident_ratio']:.2f}x",
        ]
        for name, row in figures.items()
        if name != "bf16"
    ]
    head = ("1.1B Llama shape, batch 1, tables int8", "tokens/s against bf16", "promised", "memory")
    return table(head, rows)


def memory(figures: Figures) -> str:
    """Peak memory of a fit by depth."""
    rows = []
    for depth, row in figures["depths"].items():
        peaks = [f"{row[key] / 1e9:.2f} GB" for key in ("peak_rss_bytes", "promised_bytes")]
        rows.append([f"{depth} blocks", *peaks])
    return table(("`fit --preset fast` to 4.3 bits", "peak memory", "promised"), rows)


def quality(figures: Figures) -> str:
    """Mixed plans against uniform GPTQ at equal bytes."""
    rows = []
    for name, row in figures.items():
        rounds = row["seeds"]
        uniform, plan = (mean(each[key] for each in rounds) for key in ("kl_uniform", "kl_plan"))
        rows.append(
            [
                f"{name}, plan of {rounds[0]['bits_plan']:.2f} bits",
                f"{uniform:.5f}",
                f"{plan:.5f}",
                f"{row['kl_ratio']:.2f}x",
                f"{row['kl_ratio_bound']}x",
            ]
        )
    count = len(next(iter(figures.values()))["seeds"])
    seeds = f"mean of {count} seeds" if count > 1 else "one seed"
    what = f"bundled model, held-out text, {seeds}"
    return table((what, "KL of uniform GPTQ", "KL of the plan", "ratio", "promised"), rows)


def speedup(figures: Figures) -> str:
    """A fit to a speed."""
    row = [
        f"{figures['speedup_asked']:g}x, {figures['workload']}",
        f"{figures['speedup_predicted']:.2f}x",
        f"{figures['speedup_in_fresh_process']:.2f}x",
        f"{figures['bits_per_weight']:.2f}",
    ]
    return table(("`fit --speedup`, 1.1B", "predicted", "in a fresh process", "bits"), [row])


def price(figures: Figures) -> str:
    """What presets take and give, and what their dry runs said."""
    rows = []
    for preset, row in figures.items():
        given = row["result"]
        kl = (
            f"{given[f'kl_divergence{of}']:.5f} at {given[f'bits_per_weight{of}']:.2f}"
            for of in ("", "_uniform")
        )
        said = (f"{row[name]['ratio']:.2f}x" for name in ("seconds", "memory", "disk"))
        minutes = f"{row['seconds']['taken'] / 60:.1f}"
        chosen = f"{row['selection_kl']:.5f}"
        rows.append([f"`--preset {preset}`", minutes, *kl, chosen, " / ".join(said)])
    head = ("bundled model", "minutes", "KL", "KL of the best uniform plan", "on selection text")
    return table((*head, "`--dry-run` said: time / memory / disk"), rows)


def peers_time(figures: Figures) -> str:
    """A fit against GPTQModel."""
    ours, theirs = figures["blockwright"], figures["gptqmodel"]
    rows = [
        [
            f"`fit --preset fast --bits {ours['bits_per_weight']:.1f}`",
            f"{ours['fit_seconds'] / 60:.1f}",
            f"{figures['time_ratio']:.2f}x",
            f"{ours['peak_bytes'] / theirs['peak_bytes']:.2f}x",
            f"{figures['second_budget_seconds']:.1f} s",
        ],
        ["GPTQModel int4-g128", f"{theirs['seconds'] / 60:.1f}", "1x", "1x", "the same again"],
    ]
    what = f"1.1B, {figures['tokens']:,} tokens of calibration, evaluation left out"
    return table((what, "minutes", "time", "peak memory", "a second budget"), rows)


COMMANDS = {"peers-time": "benchmarks.peers time", "memory": "benchmarks memory --tokens 4096"}
"""Where they are not those of ``python -m benchmarks``."""
TABLES: dict[str, Callable[[Figures], str]] = {
    "decode": decode,
    "quality": quality,
    "memory": memory,
    "speedup": speedup,
    "peers-time": peers_time,
    "price": price,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    text = f"{before}{BEGIN}\n\n{section(arguments.folder)}\n{END}{after}"
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
