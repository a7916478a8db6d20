"""KL at the peers' own measured bytes: peers, our uniform GPTQ, and our plans.

A peer that fails has a row with its error.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.peers.environments import failed
from benchmarks.peers.job import Job
from benchmarks.peers.judging import (
    bits_per_weight,
    judge,
    judge_uniform,
    linear_sites,
    original_loss,
    write_tokens,
)
from benchmarks.peers.running import PEERS, PeerRun, run_peer
from blockwright.errors import UserError
from blockwright.pipeline import fit
from blockwright.pipeline.measuring import loss_of
from blockwright.pipeline.opening import Run, digest_of, open_run
from blockwright.pipeline.sampling import with_sampled_text
from blockwright.progress import SilentProgress, stderr_progress
from blockwright.types import Budget, FitRequest, Preset, Quality

OURS = "our gptq"
FORMATS = ("int8-g64", "int4-g64", "int3-g64", "int2-g64")
BOUNDS = {Preset.FAST: None, Preset.BALANCED: 0.7, Preset.BEST: 0.5}
"""Largest KL of a preset's plan over that of the best uniform peer, means over seeds."""
MIXED_BOUND = 0.8
"""Largest KL of ``best`` over that of a peer that mixes bits."""
FITTED = "fitted"
"""Folder of our plans, one after the other."""
BITS_STEP = 1e-6
"""A budget is this much above the peer's bits, against rounding."""


@dataclass(frozen=True)
class Setting:
    """What is compared."""

    work: Path
    model: str
    seeds: Sequence[int]
    formats: Sequence[str]
    peers: Sequence[str]
    presets: Sequence[Preset]
    length: int
    """Tokens of a sequence, for everybody: of calibration and of held-out text."""
    threads: int
    steps: int
    """Of AutoRound."""


Row = dict[str, Any]


def run(setting: Setting) -> Row:
    """Rows of everybody by format and seed, and the ratios of their means."""
    shutil.rmtree(setting.work / FITTED, ignore_errors=True)  # of an earlier run
    rows = [told(row) for seed in setting.seeds for row in peer_rows(setting, seed)]
    for format in setting.formats:
        for rival, bits in rivals(rows, format).items():
            for seed in setting.seeds:
                rows += map(told, plan_rows(setting, seed, format, rival, bits))
    return {
        "model": setting.model,
        "held_out": "the shipped held-out text",
        "seeds": list(setting.seeds),
        "sequence_length": setting.length,
        "rows": rows,
        "ratios": ratios(rows),
    }


def told(row: Row) -> Row:
    """The row, said on stderr: the whole takes hours."""
    figures = row.get("error") or f"{row['bits']:.3f} bits per weight, KL {row['kl']:.5f}"
    print(
        f"{row['format']}, seed {row['seed']}, {row['who']}: {figures}", file=sys.stderr, flush=True
    )
    return row


def peer_rows(setting: Setting, seed: int) -> Iterator[Row]:
    """Every peer and our uniform GPTQ in every format, on one calibration sample."""
    for format in setting.formats:
        opened = open_calibrated(setting, seed, format)
        tokens = write_tokens(opened, setting.work / f"tokens-{seed}.safetensors")
        content = digest_of([opened.original.fingerprint, opened.texts.calibration.digest])
        base = {"format": format, "seed": seed, "tokens": opened.texts.calibration.tokens}
        unchanged = original_loss(opened)
        for name in setting.peers:
            job = job_of(setting, seed, format, tokens, name)
            try:
                done = run_peer(name, job, setting.work, content)
                yield base | peer_row(opened, name, done, unchanged)
            except UserError as error:
                yield base | {"who": name} | failed(error)
        bits, quality = judge_uniform(opened, format)
        yield base | {"who": OURS, "bits": bits} | losses(quality, unchanged)


def peer_row(opened: Run, name: str, done: PeerRun, unchanged: float) -> Row:
    """Figures of one finished job."""
    answer = done.answer
    by_tensor: dict[str, int] = {}
    for tensors in answer.stored_bytes.values():
        for tensor, nbytes in tensors.items():
            by_tensor[tensor] = by_tensor.get(tensor, 0) + nbytes
    return {
        "who": name,
        "bits": bits_per_weight(answer.stored_bytes, linear_sites(opened)),
        **losses(judge(opened, done.folder), unchanged),
        "quantize_seconds": answer.quantize_seconds,
        "peak_bytes": answer.peak_bytes,
        "tree_bytes": done.tree_bytes,
        "stored_bytes": by_tensor,
        "counted": answer.counted,
        "settings": answer.settings,
        "versions": answer.versions,
        "logits_difference": answer.logits_difference,
    }


def losses(quality: Quality, unchanged: float) -> Row:
    """KL, and the cross-entropy beyond the original's, in nats per token."""
    if quality.perplexity is None:
        raise UserError("peers are compared on models with a language head; give another --model")
    return {"kl": loss_of(quality), "excess_loss": log(quality.perplexity) - unchanged}


def job_of(setting: Setting, seed: int, format: str, tokens: Path, peer: str) -> Job:
    """What a peer is asked in one format; a mix gets the bits that uniform AutoRound takes."""
    bits, group_size = parse_format(format)
    average = bits + (16 + bits) / group_size if PEERS[peer].mixed else None
    return Job(
        model=str(Path(setting.model).resolve()),
        tokens=str(tokens.resolve()),
        out="",
        bits=bits,
        group_size=group_size,
        seed=seed,
        threads=setting.threads,
        steps=setting.steps,
        average_bits=average,
    )


def plan_rows(setting: Setting, seed: int, format: str, rival: str, bits: float) -> Iterator[Row]:
    """Our presets at the rival's bits."""
    for preset in setting.presets:
        request = request_of(setting, seed, Budget(bits=bits + BITS_STEP), preset)
        shutil.rmtree(request.out, ignore_errors=True)
        result = fit(request, stderr_progress())
        yield {
            "format": format,
            "seed": seed,
            "who": f"plan {preset} at the bits of {rival}",
            "rival": rival,
            "preset": str(preset),
            "bits": result.bits_per_weight,
            **losses(result.fitted, log(result.original.perplexity or 1.0)),
            "fit_seconds": result.seconds,
        }


def rivals(rows: Sequence[Row], format: str) -> dict[str, float]:
    """Whom our plans are compared with, and at how many bits: the best uniform peer, and every peer
    that mixes.
    """
    divergences = means(rows, format, "kl")
    if not divergences:
        return {}
    uniform = [name for name in divergences if name in PEERS and not PEERS[name].mixed]
    names = [min(uniform, key=lambda name: divergences[name])] if uniform else []
    names += [name for name in divergences if name in PEERS and PEERS[name].mixed]
    bits = means(rows, format, "bits")
    return {name: bits[name] for name in names}


def ratios(rows: Sequence[Row]) -> list[Row]:
    """Mean KL of every plan over that of its rival, and the bound where there is one."""
    found = []
    for format in dict.fromkeys(row["format"] for row in rows):
        divergences = means(rows, format, "kl")
        plans = {row["who"]: row for row in rows if row["format"] == format and "rival" in row}
        for who, row in plans.items():
            preset, rival = Preset(row["preset"]), row["rival"]
            mixed = MIXED_BOUND if preset is Preset.BEST else None
            found.append(
                {
                    "format": format,
                    "preset": str(preset),
                    "rival": rival,
                    "ratio": divergences[who] / divergences[rival],
                    "bound": mixed if PEERS[rival].mixed else BOUNDS[preset],
                }
            )
    return found


def means(rows: Sequence[Row], format: str, figure: str) -> Mapping[str, float]:
    """Who -> mean over seeds."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["format"] == format and figure in row:
            found.setdefault(row["who"], []).append(row[figure])
    return {who: mean(values) for who, values in found.items()}


def open_calibrated(setting: Setting, seed: int, format: str) -> Run:
    """A run whose calibration text is complete; what ``balanced`` calibrates on is what all peers
    get.
    """
    request = request_of(setting, seed, Budget(bits=16.0), Preset.BALANCED, (f"{format}:gptq",))
    return with_sampled_text(open_run(request, SilentProgress()))


def request_of(
    setting: Setting, seed: int, budget: Budget, preset: Preset, candidates: tuple[str, ...] = ()
) -> FitRequest:
    """A fit of the setting; all share one library."""
    return FitRequest(
        model=setting.model,
        out=setting.work / FITTED,
        budget=budget,
        preset=preset,
        candidates=candidates,
        library=setting.work / "library",
        seed=seed,
        threads=setting.threads,
        sequence_length=setting.length,
        speed=False,
    )


def parse_format(name: str) -> tuple[int, int]:
    """Bits and group size of ``int4-g64``."""
    match = re.fullmatch(r"int([2348])-g(\d+)", name)
    if match is None:
        raise UserError(
            f"format {name!r}: peers are run in int2, int3, int4 or int8 groups; give e.g. int4-g64"
        )
    return int(match[1]), int(match[2])
