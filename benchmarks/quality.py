"""Mixed plans against uniform GPTQ at equal bytes: KL on held-out text, mean over seeds.

    python -m benchmarks quality --out DIR [--model FOLDER] [--seeds 3] [--preset balanced] [--heal]

Budgets are the measured bytes of uniform int4-g64 and int3-g64, and 2.5 bits per weight, where the
baseline is int2-g64.  A seed draws the calibration sample and the labels of the reverse sweep.
With ``--heal`` the mixed plan is refined and healed as well, which takes most of the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from blockwright.pipeline.building import build_library
from blockwright.pipeline.choosing import choose_plan
from blockwright.pipeline.healing import heal_plan
from blockwright.pipeline.measuring import loss_of, measure_plan, original_on
from blockwright.pipeline.opening import Run, open_run
from blockwright.pipeline.posing import pose_problem
from blockwright.pipeline.presets import CANDIDATES
from blockwright.pipeline.refining import refine_plan
from blockwright.plan import uniform_plans
from blockwright.progress import SilentProgress
from blockwright.types import Budget, FitRequest, Plan, Preset, Problem

BASELINES = {"int4-g64": None, "int3-g64": None, "int2-g64": 2.5}
"""Uniform GPTQ -> bits per weight of the plan; None: those of the baseline."""
BOUNDS = {"int4-g64": 0.65, "int3-g64": 0.65, "int2-g64": 0.6}
"""Largest KL of the plan over the baseline's."""
PREDICTION_BOUND = 0.3
"""Largest relative error of the predicted KL, against the measured one on the selection text."""


def run(work: Path, model: Path, seeds: int, preset: Preset, *, heal: bool) -> dict[str, Any]:
    """Figures by baseline: every seed's, and the means over seeds."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in BASELINES}
    for seed in range(seeds):
        for name, bits in BASELINES.items():
            plans = compared(work, model, seed, preset, name, bits)
            found[name].append(figures(*plans, heal=heal))
    return {
        name: {
            "seeds": rows,
            "kl_ratio": mean_ratio(rows, "kl_plan"),
            "kl_ratio_bound": BOUNDS[name],
            "kl_ratio_healed": mean_ratio(rows, "kl_healed") if heal else None,
            "prediction_error": max(abs(row["predicted"] / row["selection"] - 1) for row in rows),
            "prediction_error_bound": PREDICTION_BOUND,
        }
        for name, rows in found.items()
    }


def mean_ratio(rows: Sequence[Mapping[str, float]], name: str) -> float:
    """Mean over seeds, against the baseline's mean."""
    return mean(row[name] for row in rows) / mean(row["kl_uniform"] for row in rows)


def compared(
    work: Path, model: Path, seed: int, preset: Preset, name: str, bits: float | None
) -> tuple[Run, Plan, Plan]:
    """One seed, one budget: the uniform plan and the mixed one."""
    run, problem = posed(work, model, seed, preset, bits or 4.5)
    candidate = f"uniform {name}:gptq"
    room = Budget(bits=8.0)
    uniform = next(plan for plan in uniform_plans(problem, room) if plan.name == candidate)
    run, problem = posed(work, model, seed, preset, bits or uniform.bits_per_weight)
    return run, uniform, choose_plan(run, problem).plan


def figures(run: Run, uniform: Plan, plan: Plan, *, heal: bool) -> dict[str, float]:
    """What both plans cost, and the mixed one when it is refined and healed."""
    found = {
        "bits_uniform": uniform.bits_per_weight,
        "bits_plan": plan.bits_per_weight,
        "kl_uniform": held_out(run, uniform),
        "kl_plan": held_out(run, plan),
        "predicted": plan.loss,
        "selection": plan.measured["selection_loss"],
    }
    if heal:
        found["kl_healed"] = held_out(run, heal_plan(run, refine_plan(run, plan)))
    return found


def posed(work: Path, model: Path, seed: int, preset: Preset, bits: float) -> tuple[Run, Problem]:
    """An opened run and its problem; variants come from the library after the first time.

    What the preset offers, and the baselines.
    """
    offered, baselines = CANDIDATES[preset], [f"{name}:gptq" for name in BASELINES]
    request = FitRequest(
        model=str(model),
        out=work / "unwritten",
        budget=Budget(bits=bits),
        preset=preset,
        candidates=(*offered, *(name for name in baselines if name not in offered)),
        library=work / "library",
        seed=seed,
    )
    run = open_run(request, SilentProgress())
    return run, pose_problem(run, build_library(run)).problem


def held_out(run: Run, plan: Plan) -> float:
    """KL on the held-out text."""
    text = run.texts.heldout
    original = original_on(run, "heldout", text)
    return loss_of(measure_plan(run, plan, original, text.digest))
