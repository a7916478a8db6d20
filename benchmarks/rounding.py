"""Learned rounding, one part after another: KL on held-out text of uniform plans at equal bytes.

    python -m benchmarks.rounding --out FILE [--model FOLDER] [--seeds 0] [--formats int3-g64 ...]

For every format and method: the library's variants, refined in order (aiming at the original's
weights, then at its outputs), healed (scales and norms).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from benchmarks.quality import held_out
from blockwright.pipeline import presets
from blockwright.pipeline.building import build_library
from blockwright.pipeline.healing import heal_each_block
from blockwright.pipeline.measuring import measure_on_selection
from blockwright.pipeline.opening import Run, open_run
from blockwright.pipeline.refining import solve_sequentially
from blockwright.progress import SilentProgress
from blockwright.tuning import TuningSettings
from blockwright.types import Budget, Choice, FitRequest, Plan, Preset, SiteKind

BUNDLED = Path(__file__).resolve().parents[1] / "src" / "blockwright" / "bundled" / "model"
FORMATS = ("int4-g64", "int3-g64", "int2-g64")
AIMS = ("weights", "outputs")
METHODS = ("gptq", "quantease")


def opened(arguments: argparse.Namespace, candidate: str, seed: int, library: Path) -> Run:
    """A run on one candidate."""
    request = FitRequest(
        model=str(arguments.model),
        out=library / "unwritten",
        budget=Budget(bits=8.0),
        candidates=(candidate,),
        library=library,
        calibration_tokens=arguments.tokens,
        sequence_length=arguments.length,
        eval_tokens=arguments.eval_tokens,
        seed=seed,
        threads=1,
    )
    return open_run(request, SilentProgress())


def uniform_plan(run: Run) -> Plan:
    """The candidate everywhere."""
    choices = {
        record.site: Choice(
            candidate=record.candidate,
            stored_bytes=record.stored_bytes,
            loss=record.error,
            key=record.key,
        )
        for record in build_library(run).records.values()
    }
    size = sum(choice.stored_bytes for choice in choices.values())
    weights = sum(site.weights for site in run.skeleton.sites if site.kind is SiteKind.LINEAR)
    return Plan(
        fingerprint=run.original.fingerprint,
        statistics=run.statistics_digest,
        budget="",
        bits_per_weight=8 * size / weights,
        size_bytes=size,
        loss=sum(choice.loss for choice in choices.values()),
        choices=choices,
        name=f"uniform {run.candidates[0]}",
    )


def stages(run: Run, arguments: argparse.Namespace) -> Iterator[tuple[str, Plan, float]]:
    """Name, plan and processor seconds of every stage."""
    began = time.process_time()

    def done(name: str, plan: Plan) -> tuple[str, Plan, float]:
        return name, plan, time.process_time() - began

    plan = uniform_plan(run)
    yield done("built", plan)
    for aim in arguments.aims:
        matched, began = aim == "outputs", time.process_time()
        with patch.dict(presets.MATCHING, {Preset.BALANCED: matched}):
            refined = solve_sequentially(run, plan)
        yield done(f"refined to {aim}", refined)
    for steps, extra in product(arguments.steps, arguments.settings):
        began = time.process_time()
        settings = TuningSettings(steps=steps, rate=arguments.rate, **json.loads(extra))
        healed = heal_each_block(run, replace(refined, healed={}), settings)
        yield done(f"healed, {steps} steps, {extra}", healed)


def main() -> None:
    """Print one line per figure and write them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=BUNDLED)
    parser.add_argument("--library", type=Path)
    parser.add_argument("--formats", nargs="+", default=list(FORMATS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--tokens", type=int, help="calibration tokens")
    parser.add_argument("--length", type=int, help="tokens of a sequence")
    parser.add_argument("--eval-tokens", type=int)
    parser.add_argument("--steps", type=int, nargs="+", default=[32])
    parser.add_argument("--rate", type=float, default=0.005)
    parser.add_argument("--settings", nargs="+", default=["{}"], help="more TuningSettings, JSON")
    parser.add_argument(
        "--aims", nargs="+", choices=("weights", "outputs"), default=["weights", "outputs"]
    )
    arguments = parser.parse_args()
    found: list[dict[str, Any]] = []
    with TemporaryDirectory() as scratch:
        library = arguments.library or Path(scratch) / "library"
        for seed in arguments.seeds:
            for format in arguments.formats:
                for method in arguments.methods:
                    candidate = f"{format}:{method}"
                    run = opened(arguments, candidate, seed, library)
                    for stage, plan, seconds in stages(run, arguments):
                        row = {"seed": seed, "candidate": candidate, "stage": stage}
                        found.append(row | {"cpu_seconds": round(seconds, 1)} | figures(run, plan))
                        print(json.dumps(found[-1]), flush=True)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def figures(run: Run, plan: Plan) -> dict[str, float]:
    """KL on both texts that calibration does not see."""
    selection = measure_on_selection(run, plan).measured["selection_loss"]
    return {"selection": selection, "held_out": held_out(run, plan)}


if __name__ == "__main__":
    main()
