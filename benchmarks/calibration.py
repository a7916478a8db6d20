"""What calibration text that the model writes itself does to quality, on the bundled model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from blockwright.cli.demo import bundled_model
from blockwright.pipeline.building import build_library
from blockwright.pipeline.measuring import measure_plan, original_on
from blockwright.pipeline.opening import open_run
from blockwright.pipeline.posing import pose_problem
from blockwright.pipeline.sampling import with_sampled_text
from blockwright.plan import solve, uniform_plans
from blockwright.progress import stderr_progress
from blockwright.types import Budget, FitRequest, Preset

SHARES = (0.0, 0.25, 0.5, 1.0)
BITS = (4.3, 3.3)
SEEDS = (0, 1)


def run(work: Path) -> dict[str, Any]:
    """Held-out KL (nats per token, mean over seeds of text and sampling) by plan and share; the
    plans of ``--preset fast`` as they are solved, before refinement.
    """
    found: dict[str, dict[float, list[float]]] = {}
    for share in SHARES:
        for seed in SEEDS:
            for plan, divergence in measured(work, share, seed):
                found.setdefault(plan, {}).setdefault(share, []).append(divergence)
    return {
        plan: {f"{share:g} sampled": {"mean": mean(kl), "by_seed": kl} for share, kl in by.items()}
        for plan, by in found.items()
    }


def measured(work: Path, share: float, seed: int) -> Iterator[tuple[str, float]]:
    """Name and KL of the solved and of the uniform plan for each budget."""
    request = FitRequest(
        model=str(bundled_model()),
        out=work / "never-written",
        budget=Budget(bits=BITS[0]),
        preset=Preset.FAST,
        library=work / f"library-{share}-{seed}",
        sampled_share=share,
        seed=seed,
    )
    run = with_sampled_text(open_run(request, stderr_progress()))
    problem = pose_problem(run, build_library(run)).problem
    heldout = run.texts.heldout
    original = original_on(run, "heldout", heldout)
    for bits in BITS:
        budget = Budget(bits=bits)
        for plan in (solve(problem, budget), *uniform_plans(problem, budget)[:1]):
            quality = measure_plan(run, plan, original, heldout.digest)
            yield f"{bits} bits, {plan.name}", quality.kl_divergence or 0.0
