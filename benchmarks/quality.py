"""Mixed plans against uniform GPTQ at equal bytes: KL on held-out text, mean over seeds.

    python -m benchmarks quality --out DIR [--model FOLDER] [--seeds 3] [--preset balanced]

Budgets are the measured bytes of uniform int4-g64 and int3-g64, and 2.5 bits per weight, where the
baseline is int2-g64.  A seed draws the calibration sample and the labels of the reverse sweep.
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

from blockwright.pipeline.building import build_library
from blockwright.pipeline.choosing import choose_plan
from blockwright.pipeline.healing import heal_plan
from blockwright.pipeline.measuring import loss_of, measure_plan, original_on
from blockwright.pipeline.opening import Run, open_run
from blockwright.pipeline.posing import pose_problem
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


def run(work: Path, model: Path, seeds: int, preset: Preset) -> dict[str, Any]:
    """Figures by baseline: every seed's, and the means over seeds."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in BASELINES}
    for seed in range(seeds):
        for name, bits in BASELINES.items():
            found[name].append(compare(work, model, seed, preset, name, bits))
    return {
        name: {
            "seeds": rows,
            "kl_ratio": mean(row["kl_plan"] for row in rows)
            / mean(row["kl_uniform"] for row in rows),
            "kl_ratio_bound": BOUNDS[name],
            "kl_ratio_healed": mean(row["kl_healed"] for row in rows)
            / mean(row["kl_uniform"] for row in rows),
            "prediction_error": max(abs(row["predicted"] / row["selection"] - 1) for row in rows),
            "prediction_error_bound": PREDICTION_BOUND,
        }
        for name, rows in found.items()
    }


def compare(
    work: Path, model: Path, seed: int, preset: Preset, name: str, bits: float | None
) -> dict[str, float]:
    """One seed, one budget: the uniform plan, the mixed plan, and that one refined and healed."""
    run, problem = posed(work, model, seed, preset, bits or 4.5)
    candidate = f"uniform {name}:gptq"
    room = Budget(bits=8.0)
    uniform = next(plan for plan in uniform_plans(problem, room) if plan.name == candidate)
    run, problem = posed(work, model, seed, preset, bits or uniform.bits_per_weight)
    plan = choose_plan(run, problem).plan
    healed = heal_plan(run, refine_plan(run, plan))
    return {
        "bits_uniform": uniform.bits_per_weight,
        "bits_plan": plan.bits_per_weight,
        "kl_uniform": held_out(run, uniform),
        "kl_plan": held_out(run, plan),
        "kl_healed": held_out(run, healed),
        "predicted": plan.loss,
        "selection": plan.measured["selection_loss"],
    }


def posed(work: Path, model: Path, seed: int, preset: Preset, bits: float) -> tuple[Run, Problem]:
    """An opened run and its problem; variants come from the library after the first time."""
    request = FitRequest(
        model=str(model),
        out=work / "unwritten",
        budget=Budget(bits=bits),
        preset=preset,
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
