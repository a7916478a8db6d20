"""Structure alone: a plan of several kinds against the best plan of one kind, at equal bytes.

    python -m benchmarks structure --out DIR [--model FOLDER] [--seeds 3] [--preset fast]
                                   [--kinds id,sparse,...]

The budget is 60% of the original's file; nothing is quantized.  All variants are built once, every
kind's plan mixes the sizes of that kind, ``all`` mixes all kinds, and ``lossless`` has weights that
are stored exactly in fewer bytes beside them.  ``peeking`` chooses among all kinds by the held-out
text itself, which is no result: it says how much better choices could have been.  ``doped`` adds
two kinds up in one weight, so it counts as mixed; the ratio against it is beside the other.  A seed
draws the calibration sample and the labels of the reverse sweep.  Presets that refine refine every
kind's plan alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from blockwright.errors import BudgetError
from blockwright.pipeline.building import build_library
from blockwright.pipeline.choosing import choose_plan
from blockwright.pipeline.measuring import loss_of, measure_plan, original_on
from blockwright.pipeline.opening import Run, open_run
from blockwright.pipeline.posing import pose_problem
from blockwright.pipeline.refining import refine_plans
from blockwright.progress import SilentProgress
from blockwright.types import Budget, FitRequest, Plan, Preset, Problem

RATIO = 0.6
LOSSLESS = "df11"
"""Exact weights in fewer bytes: no structure and no quantization; beside all kinds, a last plan."""
KINDS: dict[str, tuple[str, ...]] = {
    "rank": tuple(f"rank-p{percent}:lord@fisher=true" for percent in (30, 45, 60, 75)),
    "id": tuple(f"id-p{percent}:lord@fisher=true" for percent in (30, 40, 50, 60, 70, 80)),
    "kron": tuple(f"kron2-p{percent}:kron@fisher=true" for percent in (25, 40, 55)),
    "sparse": tuple(f"sparse{percent}:admm" for percent in (20, 30, 40, 50, 60, 70)),
    "doped": tuple(
        f"sparse{percent}&rank-p{share}:doped@fisher=true"
        for percent, share in ((50, 5), (50, 10), (60, 5), (60, 10), (70, 10), (70, 20))
    ),
    "armor": ("armor-b8:armor", "armor-b16:armor"),
    "drop": ("drop",),
    "fuse": ("fuse:fusegpt", "fuse-next:fusegpt"),
    "width": (
        "narrow-p90:modegpt",
        "narrow-p75:modegpt",
        "narrow-p50:modegpt",
        "heads-p50:modegpt",
    ),
}
"""Kind -> candidates.  Fused blocks need others dropped, and are a kind of their own with these."""
SUMS = ("doped",)
"""Kinds that are made of two."""
BOUND = 0.5
"""Largest KL of the plan of all kinds over that of the best single kind."""


def run(
    work: Path, model: Path, seeds: int, preset: Preset, kinds: Sequence[str]
) -> dict[str, Any]:
    """Held-out KL of every kind's plan and of all kinds together, by seed, and their means."""
    rows = [figures(work, model, seed, preset, kinds or tuple(KINDS)) for seed in range(seeds)]
    found = [kind for kind in rows[0] if all(kind in row for row in rows)]
    means = {kind: mean(row[kind]["heldout_kl"] for row in rows) for kind in found}
    single = {kind: means[kind] for kind in KINDS if kind in means and kind not in SUMS}
    best = min(single, key=single.__getitem__)
    sums = [means[kind] for kind in SUMS if kind in means]
    return {
        "ratio": RATIO,
        "seeds": rows,
        "mean": means,
        "best_kind": best,
        "kl_ratio": means["all"] / means[best],
        "kl_ratio_peeking": means["peeking"] / means[best],
        "kl_ratio_sums_as_kinds": means["all"] / min([means[best], *sums]),
        "kl_ratio_lossless": means["lossless"] / means[best],
        "kl_ratio_bound": BOUND,
    }


def figures(
    work: Path, model: Path, seed: int, preset: Preset, kinds: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """One seed: kind -> held-out KL of its plan, bytes, and what was chosen how often."""
    run = opened(work, model, seed, preset, kinds)
    problem = pose_problem(run, build_library(run)).problem
    found = {}
    every = tuple(name for kind in kinds for name in KINDS[kind])
    mixed = {"all": every, "peeking": every, "lossless": (*every, LOSSLESS)}
    for kind, candidates in {**{kind: KINDS[kind] for kind in kinds}, **mixed}.items():
        names = {*candidates, "drop"} if kind == "fuse" else set(candidates)
        choosing = peeking(run) if kind == "peeking" else run
        try:
            chosen = choose_plan(choosing, offering(problem, names))
        except BudgetError:
            continue
        plan = refine_plans(run, chosen).plan
        found[kind] = {
            "heldout_kl": held_out(run, plan),
            "heldout_kl_built": held_out(run, chosen.plan),
            "selection_kl": plan.measured["selection_loss"],
            "selection_kl_measured": [each.measured["selection_loss"] for each in chosen.measured],
            "predicted_kl": plan.loss,
            "size_bytes": plan.size_bytes,
            "chosen": counted(plan),
        }
    return found


def opened(work: Path, model: Path, seed: int, preset: Preset, kinds: Sequence[str]) -> Run:
    """The model with these kinds on offer."""
    asked = FitRequest(
        model=str(model),
        out=work / f"structure-{seed}",
        budget=Budget(ratio=RATIO),
        preset=preset,
        candidates=(*(name for kind in kinds for name in KINDS[kind]), LOSSLESS),
        library=work / f"structure-library-{seed}",
        seed=seed,
        threads=1,
        calibration_tokens=16_384,
        sequence_length=512,
        eval_tokens=8_192,
        speed=False,
    )
    return open_run(asked, SilentProgress())


def peeking(run: Run) -> Run:
    """The run choosing by the held-out text itself."""
    return replace(run, texts=replace(run.texts, selection=run.texts.heldout))


def offering(problem: Problem, candidates: set[str]) -> Problem:
    """The problem with these candidates alone."""
    offered = {"keep", *candidates}
    options = tuple(option for option in problem.options if option.candidate in offered)
    pairs = tuple(pair for pair in problem.pairs if offered.issuperset(pair.candidates))
    return replace(problem, options=options, pairs=pairs)


def held_out(run: Run, plan: Plan) -> float:
    """KL in nats per token."""
    text = run.texts.heldout
    return loss_of(measure_plan(run, plan, original_on(run, "heldout", text), text.digest))


def counted(plan: Plan) -> Mapping[str, int]:
    """Candidate -> how often it was chosen."""
    chosen: Sequence[str] = [choice.candidate for choice in plan.choices.values()]
    return {name: chosen.count(name) for name in sorted(set(chosen))}
