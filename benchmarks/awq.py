"""What scaled groups are worth: KL of uniform and mixed plans with and without AWQ candidates.

    python -m benchmarks.awq --out awq.json [--model FOLDER] [--seeds 3] [--chains gptq "awq>gptq"]

Uniform plans have equal bytes by construction; mixed plans keep the same budget.  Nothing is
refined or healed; all calibration text is shipped text.  KL is in nats per token; selection text
decides, held-out text is reported.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.healing import BUNDLED
from benchmarks.quality import held_out
from blockwright.pipeline.building import build_library
from blockwright.pipeline.choosing import choose_plan
from blockwright.pipeline.measuring import measure_on_selection
from blockwright.pipeline.opening import Run, open_run
from blockwright.pipeline.posing import pose_problem
from blockwright.plan import uniform_plans
from blockwright.progress import SilentProgress
from blockwright.types import Budget, FitRequest, Plan, Problem

FORMATS = ("int2-g64", "int3-g64", "int4-g64")
CHAINS = ("gptq", "awq>gptq")
BUDGETS = (2.5, 3.3, 4.3)
"""Bits per weight of mixed plans."""


def opened(
    arguments: argparse.Namespace, candidates: tuple[str, ...], bits: float, seed: int, work: Path
) -> tuple[Run, Problem]:
    """A run and its problem; variants come from the library after the first time."""
    request = FitRequest(
        model=str(arguments.model),
        out=work / "unwritten",
        budget=Budget(bits=bits),
        candidates=candidates,
        library=work / "library",
        seed=seed,
        threads=1,
        sampled_share=0.0,
    )
    run = open_run(request, SilentProgress())
    return run, pose_problem(run, build_library(run)).problem


def figures(run: Run, plan: Plan) -> dict[str, float]:
    """Predicted and measured KL."""
    measured = measure_on_selection(run, plan).measured["selection_loss"]
    return {
        "bits": plan.bits_per_weight,
        "predicted": plan.loss,
        "selection": measured,
        "held_out": held_out(run, plan),
    }


def rows(arguments: argparse.Namespace, seed: int, work: Path) -> Iterator[dict[str, Any]]:
    """Figures of every uniform plan, then of mixes of the first chain and of all chains."""
    chains = tuple(arguments.chains)
    candidates = tuple(f"{format}:{chain}" for format in FORMATS for chain in chains)
    run, problem = opened(arguments, candidates, 8.0, seed, work)
    for plan in uniform_plans(problem, Budget(bits=8.0)):
        yield {"seed": seed, "plan": plan.name, **figures(run, plan)}
    for offered in (chains[:1], chains):
        mixed = tuple(f"{format}:{chain}" for format in (*FORMATS, "int5-g64") for chain in offered)
        for bits in BUDGETS:
            run, problem = opened(arguments, mixed, bits, seed, work)
            plan = choose_plan(run, problem).plan
            name = f"{', '.join(offered)} at {bits}"
            yield {"seed": seed, "plan": name, **figures(run, plan)}


def main() -> None:
    """Print one line per plan and write them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=BUNDLED)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--chains", nargs="+", default=list(CHAINS))
    arguments = parser.parse_args()
    found = []
    with TemporaryDirectory() as scratch:
        for seed in range(arguments.seeds):
            for row in rows(arguments, seed, Path(scratch)):
                print(json.dumps(row), flush=True)
                found.append(row)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
