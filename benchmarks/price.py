"""What ``fit --dry-run`` says against what the fit then takes, memory, disk and time, by preset;
and what each preset gives: KL and bits.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockwright.cli.demo import bundled_model
from blockwright.errors import UserError
from blockwright.pipeline.presets import SELECTION_TOKENS
from blockwright.types import Preset

BOUNDS = {"memory": 2.0, "disk": 2.0, "seconds": 3.0}
"""Largest factor between a price and what came, either way."""
GIVEN = ("bits_per_weight", "kl_divergence", "bits_per_weight_uniform", "kl_divergence_uniform")
POLL_SECONDS = 0.2
SELECTION = bundled_model().parent / "texts" / "selection.jsonl"


@dataclass(frozen=True)
class Priced:
    """A model and options of a fit, ``--out`` and ``--library`` left out."""

    name: str
    model: Path
    options: Sequence[str]


def run(work: Path, bits: float) -> dict[str, Any]:
    """The bundled model with every preset, from the cheapest to the dearest.

    Raises ``UserError`` when one is worse than a cheaper one on the selection text.
    """
    cases = [
        Priced(str(preset), bundled_model(), ("--bits", str(bits), "--preset", str(preset)))
        for preset in Preset
    ]
    found = {}
    for case in cases:
        place = work / f"price-{case.name}"
        found[case.name] = compare(case, place) | {"selection_kl": selection_kl(case, place)}
    if worse := worse_than_cheaper(found):
        raise UserError(f"worse on the selection text than a cheaper preset: {', '.join(worse)}")
    return found


def selection_kl(case: Priced, work: Path) -> float:
    """KL of a finished case on as much of the selection text as the dearest preset reads."""
    command = [sys.executable, "-m", "blockwright", "evaluate", str(work / "out")]
    command += ["--against", str(case.model), "--eval-text", str(SELECTION)]
    command += ["--eval-tokens", str(SELECTION_TOKENS[Preset.BEST]), "--json"]
    kl: float = _answer(command)["kl_divergence"]
    return kl


def worse_than_cheaper(found: dict[str, Any]) -> list[str]:
    """Presets whose KL on the selection text is above that of a cheaper one; cheapest first."""
    kls = {name: figures["selection_kl"] for name, figures in found.items()}
    names = list(kls)
    return [
        name
        for i, name in enumerate(names)
        if any(kls[name] > kls[cheaper] for cheaper in names[:i])
    ]


def compare(case: Priced, work: Path) -> dict[str, Any]:
    """Dry run, then the run; every figure priced and taken, and their ratio."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    command = [sys.executable, "-m", "blockwright", "fit", str(case.model), *case.options]
    command += ["--out", str(work / "out"), "--library", str(work / "library"), "--json"]
    price = _answer([*command, "--dry-run"])
    disk = DiskPeak(work)
    with disk:
        result = _answer(command)
    pairs = {
        "memory": (price["memory_bytes"], result["peak_rss_bytes"]),
        "disk": (price["disk_bytes"], disk.peak),
        "seconds": (price["seconds"], result["seconds"]),
    }
    return {
        name: {"priced": priced, "taken": taken, "ratio": priced / taken, "bound": BOUNDS[name]}
        for name, (priced, taken) in pairs.items()
    } | {"parts": price["parts"], "result": {name: result[name] for name in GIVEN}}


def out_of_bounds(figures: dict[str, Any]) -> list[str]:
    """Which of a case's figures are too far off, with their ratio."""
    return [
        f"{name} {figures[name]['ratio']:.2f}"
        for name, bound in BOUNDS.items()
        if not 1 / bound <= figures[name]["ratio"] <= bound
    ]


class DiskPeak:
    """Largest size of a folder while it is entered."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.peak = folder, 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> DiskPeak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            self.peak = max(self.peak, folder_bytes(self.folder))
        self.peak = max(self.peak, folder_bytes(self.folder))


def folder_bytes(folder: Path) -> int:
    """Bytes of all files; what vanishes meanwhile does not count."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += (Path(place) / name).stat().st_size
    return total


def _answer(command: Sequence[str]) -> dict[str, Any]:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
