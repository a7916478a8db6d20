"""What every adapter gives back of four damages to the bundled model, after the same steps.

    D1  30% of the FFN channels gone: least norm of their column times mean |activation|
    D2  int3-g64, rounded to nearest
    D3  every linear as two factors of half its rank (plain SVD)
    D4  one block gone

R = (loss damaged - loss healed) / (loss damaged - loss original), cross-entropy on held-out text of
the folder that healing wrote.

    python -m benchmarks.adapters --out FOLDER [--part 0 2] [--steps 300] [--adapters auto lora]

``FOLDER`` gets the damaged models, a file for every cell, ``adapters.json`` and ``adapters.md``.  A
cell that is there is not measured again, so that a killed run loses one.  ``--part 0 2`` and
``--part 1 2`` share the cells between two processes; the last one to end sees all of them.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import stdev
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.cells import mean, measured, read_cell
from benchmarks.damages import DAMAGES, damaged
from blockwright.checkpoint import write_bytes_atomic, write_json_atomic
from blockwright.errors import AdapterError, CandidateError
from blockwright.evaluate import measure, run_to_file
from blockwright.heal import TaughtText
from blockwright.machine import describe_machine
from blockwright.pipeline import whole_healing
from blockwright.pipeline.heal_model import open_job
from blockwright.pipeline.proving import open_fitted
from blockwright.pipeline.whole_healing import HealJob, train_job, write_healed
from blockwright.progress import SilentProgress
from blockwright.registry import adapter_names
from blockwright.stream import Inputs
from blockwright.texts import TokenSet
from blockwright.types import HealRequest

BUNDLED = Path(__file__).resolve().parents[1] / "src" / "blockwright" / "bundled" / "model"
NOT_ADAPTERS = ("auto", "full")
"""What is compared with the adapters: the choice among them, and training everything."""
LEFT_OUT = ("stored", "lqlora")
"""``stored`` is e2eqp on D2 and welore on D3; no damage has ``lqlora``'s host."""


class Bench:
    """Where cells, models and the original's hidden states are."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.out = arguments, Path(arguments.out)
        self.work = self.out / f"work-{arguments.part[0]}"
        self.setting = {
            "steps": arguments.steps,
            "batch_tokens": arguments.batch_tokens,
            "rate": arguments.rate,
            "eval_tokens": arguments.eval_tokens,
        }

    def folder(self, damage: str) -> Path:
        """A damaged model, made once."""
        return damaged(damage, self.arguments.model, self.work)

    def cells(self) -> Iterator[tuple[str, str, int]]:
        """Damage, adapter and seed; seeds last, so that half a table has all adapters."""
        arguments = self.arguments
        for seed, damage, adapter in product(
            arguments.seeds, arguments.damages, arguments.adapters
        ):
            yield damage, adapter, seed

    def cell(self, damage: str, adapter: str, seed: int) -> dict[str, Any]:
        """Figures of one cell; an adapter that was refused with another seed is refused again."""
        for other in self.arguments.seeds:
            held = self.held(damage, adapter, other)
            if held and "refused" in held:
                return held

        def healed() -> Mapping[str, Any]:
            return self.healed(damage, adapter, seed)

        return measured(*self.place(damage, adapter, seed), healed)

    def held(self, damage: str, adapter: str, seed: int) -> dict[str, Any] | None:
        """The same, if it was measured."""
        return read_cell(*self.place(damage, adapter, seed))

    def place(self, damage: str, adapter: str, seed: int) -> tuple[Path, dict[str, Any]]:
        """File and setting of a cell."""
        setting = {"damage": damage, "adapter": adapter, "seed": seed, **self.setting}
        return self.cell_path(f"{damage}-{adapter}-{seed}"), setting

    def cell_path(self, name: str) -> Path:
        return self.out / "cells" / f"{name}.json"

    def healed(self, damage: str, adapter: str, seed: int) -> Mapping[str, Any]:
        """R and what it took, or why the adapter could not stand there."""
        with TemporaryDirectory() as scratch:
            job, began = self.job(damage, adapter, seed, Path(scratch)), time.process_time()
            try:
                with patch.object(whole_healing, "taught", self.taught):
                    outcome = train_job(job)
            except (AdapterError, CandidateError) as error:
                return {"refused": str(error)}
            folder = Path(scratch) / "written"
            folder.mkdir()
            write_healed(job, outcome, folder, ())
            loss = heldout_loss(job, folder, job.work)
        before, original = (self.loss(job, name) for name in (damage, "original"))
        return {
            "recovered": (before - loss) / (before - original),
            "loss": loss,
            "loss_damaged": before,
            "loss_original": original,
            "trainable": outcome.student.counts.trainable,
            "best_step": outcome.healed.progress.best_step,
            "cpu_seconds": time.process_time() - began,
        }

    def job(self, damage: str, adapter: str, seed: int, scratch: Path) -> HealJob:
        request = HealRequest(
            model=str(self.folder(damage)),
            against=str(self.arguments.model),
            out=scratch / "healed",
            adapter=adapter,
            seed=seed,
            threads=self.arguments.threads,
            **self.setting,
        )
        return open_job(request, SilentProgress())

    def taught(self, job: HealJob, name: str, tokens: TokenSet) -> TaughtText:
        """A text with the original's hidden states, kept for all cells that train on it."""
        work = self.work / f"original-{tokens.digest[:16]}-{len(tokens.ids)}"
        return TAUGHT(replace(job, work=work), name, tokens)

    def loss(self, job: HealJob, name: str) -> float:
        """Held-out loss of a model that is not healed, measured once."""
        folder = self.arguments.model if name == "original" else self.folder(name)
        setting = {"model": name, "eval_tokens": self.arguments.eval_tokens}

        def unhealed() -> Mapping[str, Any]:
            return {"loss": heldout_loss(job, folder, self.work)}

        return float(measured(self.cell_path(f"loss-{name}"), setting, unhealed)["loss"])


TAUGHT = whole_healing.taught


def heldout_loss(job: HealJob, folder: Path, work: Path) -> float:
    """Nats per token of a folder."""
    inputs, target = Inputs.of_tokens(job.texts.heldout.ids), work / "heldout.bin"
    work.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    quality = measure(run_to_file(open_fitted(folder), inputs, target))
    target.unlink()
    return math.log(quality.perplexity or math.nan)


def table(cells: list[dict[str, Any]], title: str) -> str:
    """Markdown: mean R, and its spread over seeds, by adapter and damage."""
    found = {
        (cell["adapter"], cell["damage"]): [
            other["recovered"]
            for other in cells
            if (other["adapter"], other["damage"]) == (cell["adapter"], cell["damage"])
        ]
        for cell in cells
        if "recovered" in cell
    }
    damages = sorted({damage for _, damage in found})
    adapters = list(dict.fromkeys(adapter for adapter, _ in found))
    lines = [title, "", f"| | {' | '.join(damages)} |", "|---" * (len(damages) + 1) + "|"]
    for adapter in adapters:
        row = [shown(found.get((adapter, damage))) for damage in damages]
        lines.append(f"| `{adapter}` | {' | '.join(row)} |")
    gaps = [gap(found, damage) for damage in damages]
    lines.append(f"| auto less the best adapter | {' | '.join(gaps)} |")
    return "\n".join(lines) + "\n"


def shown(values: list[float] | None) -> str:
    if not values:
        return "-"
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def gap(found: Mapping[tuple[str, str], list[float]], damage: str) -> str:
    """Of the automatic choice, to the best single adapter."""
    single = [
        mean(values)
        for (adapter, where), values in found.items()
        if where == damage and adapter not in NOT_ADAPTERS
    ]
    auto = found.get(("auto", damage))
    return f"{mean(auto) - max(single):+.2f}" if auto and single else "-"


def main() -> None:
    """Print one line per cell, and write the table of all that are there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=BUNDLED)
    parser.add_argument("--damages", nargs="+", choices=DAMAGES, default=list(DAMAGES))
    adapters = ["auto", *(name for name in adapter_names() if name not in LEFT_OUT)]
    parser.add_argument("--adapters", nargs="+", default=adapters)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--batch-tokens", type=int, default=512)
    parser.add_argument("--eval-tokens", type=int, default=16_384)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--part", type=int, nargs=2, default=(0, 1), metavar=("I", "N"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bench, (part, parts) = Bench(arguments), arguments.part
    for place, cell in enumerate(bench.cells()):
        if place % parts == part:
            print(json.dumps(bench.cell(*cell)), flush=True)
    found = [held for cell in bench.cells() if (held := bench.held(*cell))]
    machine = describe_machine()
    title = (
        f"R, {arguments.steps} steps of {arguments.batch_tokens} tokens of shipped text,"
        f" {arguments.eval_tokens} held-out tokens, seeds {arguments.seeds}, {machine}"
    )
    write_json_atomic(arguments.out / "adapters.json", {"machine": machine, "cells": found})
    write_bytes_atomic(arguments.out / "adapters.md", table(found, title).encode())


if __name__ == "__main__":
    main()
