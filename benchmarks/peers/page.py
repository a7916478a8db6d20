"""docs/benchmarks.md with its plots and JSON, written from what was measured.

Ratios come first.  Rows in which Blockwright is not first take their reason from ``reasons.toml``.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers import svg
from benchmarks.peers.quality import OURS, means
from benchmarks.readme import table
from blockwright.errors import UserError

REASONS = Path(__file__).resolve().parent / "reasons.toml"
UNEXPLAINED = "not found yet"
BUNDLED = "the bundled one"
TITLE = "# Against other tools\n\nWritten by `make bench-peers`; nothing here is written by hand"
TITLE += " but the reasons, which stand in `benchmarks/peers/reasons.toml`.\n"
Row = dict[str, Any]
Reasons = Mapping[str, str]


def write_page(measured: Path, docs: Path) -> Path:
    """Write page, plots and JSON; the page.  ``measured`` holds the JSON of the parts."""
    parts = {
        part: without_places(json.loads(path.read_text(encoding="utf-8")))
        for part in SECTIONS
        if (path := measured / f"peers-{part}.json").is_file()
    }
    if not parts:
        raise UserError(f"{measured} holds no peers-*.json; run quality, time or decode first")
    reasons = tomllib.loads(REASONS.read_text(encoding="utf-8"))
    docs.mkdir(parents=True, exist_ok=True)
    texts = [TITLE]
    for part, report in parts.items():
        words, plots = SECTIONS[part](report["figures"], reasons.get(part, {}))
        texts += [words, *(f"![{part}](benchmarks-{name}.svg)\n" for name in plots)]
        texts.append(measured_on(report["machine"]))
        for name, drawn in plots.items():
            (docs / f"benchmarks-{name}.svg").write_text(drawn, encoding="utf-8")
    (docs / "benchmarks.json").write_text(json.dumps(parts, indent=1) + "\n", encoding="utf-8")
    page = docs / "benchmarks.md"
    page.write_text("\n".join(texts), encoding="utf-8")
    return page


def without_places(found: Any) -> Any:
    """The same without logs and without the folders that the model is in."""
    if isinstance(found, list):
        return [without_places(each) for each in found]
    if not isinstance(found, dict):
        return found
    kept = {key: without_places(value) for key, value in found.items() if key != "log"}
    return kept | ({"model": model_name(Path(kept["model"]))} if "model" in kept else {})


def model_name(folder: Path) -> str:
    """What a reader knows it by."""
    return BUNDLED if folder.parts[-2:] == ("bundled", "model") else folder.name


def measured_on(machine: Row) -> str:
    """The line under a section."""
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    what = f"{machine['processor']} ({machine['capability']}), {threads}"
    versions = f"torch {machine['torch']}, transformers {machine['transformers']}"
    return f"{what}; {versions}, Python {machine['python']}.\n"


def quality(figures: Row, reasons: Reasons) -> tuple[str, dict[str, str]]:
    """Losses at the peers' bytes."""
    rows = figures["rows"]
    head = ("format", "plan", "against", "KL ratio", "promised", "why not first")
    ratios = [
        [
            row["format"],
            row["preset"],
            row["rival"],
            f"{row['ratio']:.2f}x",
            f"{row['bound']}x" if row["bound"] else "",
            reason(reasons, f"{row['format']} {row['preset']} {row['rival']}", row["ratio"] < 1),
        ]
        for row in figures["ratios"]
    ]
    parts = ["## Quality at equal bytes\n", setting_of_quality(figures)]
    parts += [table(head, ratios)] if ratios else []
    parts += [table(*losses(rows)), errors([(f"{r['format']} {r['who']}", r) for r in rows])]
    points = [
        svg.Point(shown(who), means(rows, format, "bits")[who], divergence, is_ours(who))
        for format in dict.fromkeys(row["format"] for row in rows)
        for who, divergence in means(rows, format, "kl").items()
    ]
    drawn = svg.scatter(points, "bits per weight, measured", "KL, nats per token")
    return "\n".join(parts), {"quality": drawn}


def setting_of_quality(figures: Row) -> str:
    """What the losses are of."""
    tokens = sorted({row["tokens"] for row in figures["rows"] if "tokens" in row})
    seeds = ", ".join(map(str, figures["seeds"]))
    return (
        f"Model: {figures['model']}; {figures['held_out']}; sequences of"
        f" {figures['sequence_length']} tokens; {' to '.join(map(str, tokens))} calibration tokens;"
        f" seeds {seeds}, means.  One evaluator, ours, judges everybody's dense weights in fp32.\n"
    )


def losses(rows: Sequence[Row]) -> tuple[Sequence[str], list[list[str]]]:
    """Everybody's losses, the least first; ratios to our uniform GPTQ of the same format."""
    head = ("format", "who", "KL / our GPTQ", "bits", "KL", "excess loss", "minutes", "peak, GB")
    found = []
    for format in dict.fromkeys(row["format"] for row in rows):
        names = ("kl", "bits", "excess_loss", "quantize_seconds", "fit_seconds", "tree_bytes")
        by_name = {name: means(rows, format, name) for name in names}
        own = by_name["kl"].get(OURS)
        for who, divergence in sorted(by_name["kl"].items(), key=lambda item: item[1]):
            seconds = by_name["quantize_seconds"].get(who, by_name["fit_seconds"].get(who))
            peak = by_name["tree_bytes"].get(who)
            found.append(
                [
                    format,
                    f"**{who}**" if is_ours(who) else who,
                    f"{divergence / own:.2f}x" if own else "",
                    f"{by_name['bits'][who]:.3f}",
                    f"{divergence:.5f}",
                    f"{by_name['excess_loss'][who]:+.5f}",
                    f"{seconds / 60:.1f}" if seconds else "",
                    f"{peak / 1e9:.2f}" if peak else "",
                ]
            )
    return head, found


def compressing(figures: Row, reasons: Reasons) -> tuple[str, dict[str, str]]:
    """Minutes and peak memory."""
    ours, peers = figures["blockwright"], figures["peers"]
    head = ("against", "time ratio", "promised", "memory ratio", "promised", "why not first")
    rows = [
        [
            row["rival"],
            f"{row['time']:.2f}x",
            f"{row['time_bound']}x" if "time_bound" in row else "",
            f"{row['memory']:.2f}x",
            f"{row['memory_bound']}x" if "memory_bound" in row else "",
            reason(reasons, row["rival"], row["time"] <= 1 and row["memory"] <= 1),
        ]
        for row in figures["ratios"]
    ]
    everybody = {
        "**fit --preset fast**": (ours["fit_seconds"], ours["tree_bytes"]),
        **{n: (r["seconds"], r["tree_bytes"]) for n, r in peers.items() if "error" not in r},
    }
    absolute = [[n, f"{s / 60:.1f}", f"{b / 1e9:.2f}"] for n, (s, b) in everybody.items()]
    second = figures["second_budget_seconds"]
    bound = figures["second_budget_bound_seconds"]
    parts = [
        "## Time and memory of compressing\n",
        f"Model: {figures['model']}, {figures['tokens']} calibration tokens, int4 in groups of 128"
        " or 4.3 bits; reading, quantizing and saving, without evaluation.\n",
        table(head, rows),
        table(("who", "minutes", "peak of the process tree, GB"), absolute),
        f"A second budget from the library: {second:.1f} s (promised: {bound:g} s).\n",
        errors(list(peers.items())),
    ]
    points = [
        svg.Point(name.strip("*"), nbytes / 1e9, seconds / 60, "fit" in name)
        for name, (seconds, nbytes) in everybody.items()
    ]
    return "\n".join(parts), {"compressing": svg.scatter(points, "peak memory, GB", "minutes")}


def decode(figures: Row, reasons: Reasons) -> tuple[str, dict[str, str]]:
    """Speed and memory of what comes out."""
    timed = [row for row in figures["rows"] if "error" not in row]
    head = ("ours", "against", "decode", "promised", "prefill", "memory", "why not first")
    ratios = [
        [
            row["who"],
            row["rival"],
            f"{row['decode']:.2f}x",
            f"{row['bound']}x" if row["bound"] else "",
            f"{row['prefill']:.2f}x",
            f"{row['resident']:.2f}x",
            reason(reasons, f"{row['who']} {row['rival']}", row["decode"] >= 1),
        ]
        for row in figures["ratios"]
    ]
    against = ("who", "decode / bf16", "prefill / bf16", "memory / bf16")
    absolute = ("tokens/s", "prefill, s", "resident, GB", "libraries, GB", "logits differ by")
    rows = [
        [
            f"**{row['who']}**" if is_ours(row["who"]) else row["who"],
            *(f"{row[f'{name}_ratio']:.2f}x" for name in ("decode", "prefill", "resident")),
            f"{row['decode_tokens_per_second']:.2f}",
            f"{row['prefill_seconds']:.2f}",
            f"{row['resident_bytes'] / 1e9:.2f}",
            f"{row['library_bytes'] / 1e9:.2f}",
            f"{row['logits_difference']:.3f}",
        ]
        for row in timed
    ]
    parts = [
        "## Decoding\n",
        f"Model: {figures['model']}, batch 1, {figures['decode_tokens']} tokens behind a prompt"
        f" of {figures['prompt_tokens']}; fresh processes in turn, least of {figures['rounds']}."
        "  Tokens per second and memory of ours over the rival's:\n",
        table(head, ratios),
        table((*against, *absolute), rows),
        errors([(row["who"], row) for row in figures["rows"]]),
    ]
    shown_bars = [(row["who"], row["decode_ratio"], is_ours(row["who"])) for row in timed]
    drawn = svg.bars(shown_bars, "tokens per second, decoding, over plain bf16")
    return "\n".join(parts), {"decode": drawn}


def shown(who: str) -> str:
    """A plan by its preset, whatever its rival."""
    return who.partition(" at ")[0]


def is_ours(who: str) -> bool:
    """Whether a row is Blockwright's."""
    return who.startswith(("our", "plan "))


def reason(reasons: Reasons, row: str, first: bool) -> str:
    """Nothing where we are first; else what is known of why not."""
    return "" if first else reasons.get(row, UNEXPLAINED)


def errors(rows: Sequence[tuple[str, Row]]) -> str:
    """A list of what failed; empty where nothing did."""
    return "".join(f"- {name}: {row['error']}\n" for name, row in rows if "error" in row)


SECTIONS = {"quality": quality, "time": compressing, "decode": decode}
