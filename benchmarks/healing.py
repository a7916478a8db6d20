"""What local healing gives back: KL on held-out text before and after, over rates and steps.

python -m benchmarks.healing --out healing.json [--model FOLDER] [--seeds 0 1 2]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.quality import held_out
from blockwright.pipeline.building import build_library
from blockwright.pipeline.choosing import choose_plan
from blockwright.pipeline.healing import heal_each_block
from blockwright.pipeline.opening import open_run
from blockwright.pipeline.posing import pose_problem
from blockwright.pipeline.refining import refine_plans
from blockwright.progress import SilentProgress
from blockwright.tuning import TuningSettings
from blockwright.types import Budget, FitRequest

BUNDLED = Path(__file__).resolve().parents[1] / "src" / "blockwright" / "bundled" / "model"
MIXED = tuple(f"int{bits}-g64:gptq" for bits in (2, 3, 4, 5))
CASES = {
    "int3-g64": (3.297, ("int3-g64:gptq",)),
    "int2-g64": (2.282, ("int2-g64:gptq",)),
    "mixed 2.6": (2.6, MIXED),
}


def refined_plan(arguments: argparse.Namespace, case: str, seed: int, library: Path) -> Any:
    """An opened run and its refined plan."""
    bits, candidates = CASES[case]
    request = FitRequest(
        model=str(arguments.model),
        out=library / "unwritten",
        budget=Budget(bits=bits),
        candidates=candidates,
        library=library,
        calibration_tokens=arguments.tokens,
        sequence_length=arguments.length,
        eval_tokens=arguments.eval_tokens,
        seed=seed,
        threads=1,
    )
    run = open_run(request, SilentProgress())
    posed = pose_problem(run, build_library(run))
    return run, refine_plans(run, choose_plan(run, posed.problem)).plan


def main() -> None:
    """Print one line per figure and write them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=BUNDLED)
    parser.add_argument("--library", type=Path)
    parser.add_argument("--cases", nargs="+", default=list(CASES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tokens", type=int, help="calibration tokens")
    parser.add_argument("--length", type=int, default=512, help="tokens of a sequence")
    parser.add_argument("--eval-tokens", type=int)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.001, 0.003, 0.01])
    parser.add_argument("--steps", type=int, nargs="+", default=[16, 64])
    arguments = parser.parse_args()
    found: list[dict[str, Any]] = []
    with TemporaryDirectory() as scratch:
        library = arguments.library or Path(scratch) / "library"
        for seed, case in product(arguments.seeds, arguments.cases):
            run, plan = refined_plan(arguments, case, seed, library)
            before = held_out(run, plan)
            for steps, rate in product(arguments.steps, arguments.rates):
                settings = TuningSettings(steps=steps, rate=rate)
                after = held_out(run, heal_each_block(run, replace(plan, healed={}), settings))
                found.append(
                    {"case": case, "seed": seed, "steps": steps, "rate": rate}
                    | {"before": before, "after": after, "ratio": after / before}
                )
                print(json.dumps(found[-1]), flush=True)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
