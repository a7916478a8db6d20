"""Structures beside bits: a plan of both against the best plan of bits alone, at equal bytes.

    python -m benchmarks mixed --out DIR [--model FOLDER] [--seeds 3] [--preset fast] [--bits 2.5]

What the preset offers is compared with the same beside dropped and narrower parts, fewer heads,
zeros and thin factors, all quantized.  Presets that refine refine both plans alike.  A seed draws
the calibration sample and the labels of the reverse sweep.
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.structure import counted, held_out, offering
from blockwright.pipeline.building import build_library
from blockwright.pipeline.choosing import choose_plan
from blockwright.pipeline.opening import Run, open_run
from blockwright.pipeline.posing import pose_problem
from blockwright.pipeline.presets import CANDIDATES
from blockwright.pipeline.refining import refine_plans
from blockwright.progress import SilentProgress
from blockwright.types import Budget, FitRequest, Preset

FEW = tuple(f"int{bits}-g64:quantease" for bits in (2, 3, 4))
"""Bits beside those of the preset: `fast` has none below 3."""
STRUCTURES = (
    "drop",
    *(f"narrow-p{p}+int{bits}-g64:modegpt>quantease" for p in (75, 50) for bits in (2, 3, 4)),
    *(f"heads-p50+int{bits}-g64:modegpt>quantease" for bits in (3, 4)),
    "id-p50+int4-g64:lord@fisher=true",
    "rank-p50+int4-g64:lord@fisher=true",
    "sparse50+int4:sparsegpt",
    "sparse2of4+int4-g64:sparsegpt",
)
BOUND = 1.0
"""Largest KL of the mixed plan over that of bits alone."""


def run(work: Path, model: Path, seeds: int, preset: Preset, bits: float) -> dict[str, Any]:
    """Held-out KL of both plans by seed, and the ratio of their means."""
    rows = [figures(work, model, seed, preset, bits) for seed in range(seeds)]
    means = {name: mean(row[name]["heldout_kl"] for row in rows) for name in rows[0]}
    return {
        "bits": bits,
        "seeds": rows,
        "mean": means,
        "kl_ratio": means["mixed"] / means["bits"],
        "kl_ratio_bound": BOUND,
    }


def figures(
    work: Path, model: Path, seed: int, preset: Preset, bits: float
) -> dict[str, dict[str, Any]]:
    """One seed: what both plans lose and take, and what was chosen how often."""
    run = opened(work, model, seed, preset, bits)
    problem = pose_problem(run, build_library(run)).problem
    found = {}
    for name, names in {"bits": bits_of(preset), "mixed": everything(preset)}.items():
        chosen = choose_plan(run, offering(problem, set(names)))
        plan = refine_plans(run, chosen).plan
        found[name] = {
            "heldout_kl": held_out(run, plan),
            "heldout_kl_built": held_out(run, chosen.plan),
            "selection_kl": plan.measured["selection_loss"],
            "bits_per_weight": plan.bits_per_weight,
            "chosen": counted(plan),
        }
    return found


def bits_of(preset: Preset) -> tuple[str, ...]:
    """Quantization alone."""
    return tuple(dict.fromkeys((*CANDIDATES[preset], *FEW)))


def everything(preset: Preset) -> tuple[str, ...]:
    """Structures beside it."""
    return (*bits_of(preset), *STRUCTURES)


def opened(work: Path, model: Path, seed: int, preset: Preset, bits: float) -> Run:
    """The model with all of it on offer."""
    asked = FitRequest(
        model=str(model),
        out=work / f"mixed-{seed}",
        budget=Budget(bits=bits),
        preset=preset,
        candidates=everything(preset),
        library=work / f"mixed-library-{seed}",
        seed=seed,
        threads=1,
        calibration_tokens=16_384,
        sequence_length=512,
        eval_tokens=8_192,
        speed=False,
    )
    return open_run(asked, SilentProgress())
