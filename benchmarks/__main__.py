"""``python -m benchmarks [decode] [memory] [speedup] [quality] [price] [calibration] [kvcache]
[structure] [mixed] [step] --out DIR``: JSON, with the machine's description.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import (
    calibration,
    decode,
    kvcache,
    memory,
    mixed,
    price,
    quality,
    speedup,
    step,
    structure,
)
from blockwright.machine import describe_machine
from blockwright.types import Preset

BENCHMARKS = ("decode", "memory", "speedup", "quality", "price")
"""What ``make bench`` runs."""
MORE = ("calibration", "kvcache", "structure", "mixed", "step")
"""What is run by name only: figures that decided something, not promises."""
BUNDLED = Path(__file__).resolve().parents[1] / "src" / "blockwright" / "bundled" / "model"


def measure(which: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one benchmark."""
    if which == "decode":
        return decode.run(arguments.out, arguments.blocks, arguments.rounds)
    if which == "memory":
        return memory.run(arguments.out, arguments.blocks, arguments.tokens)
    if which == "speedup":
        return speedup.run(arguments.out, arguments.blocks, arguments.rounds, arguments.tokens)
    if which == "quality":
        preset = Preset(arguments.preset)
        options = (arguments.out, arguments.model, arguments.seeds, preset)
        return quality.run(*options, heal=arguments.heal)
    if which == "kvcache":
        return kvcache.run(arguments.model, arguments.tokens, arguments.rounds)
    common = (arguments.out, arguments.model, arguments.seeds, Preset(arguments.preset))
    kinds = arguments.kinds.split(",")
    rest: dict[str, Callable[[], dict[str, Any]]] = {
        "price": lambda: price.run(arguments.out, arguments.bits or 4.3),
        "calibration": lambda: calibration.run(arguments.out),
        "step": lambda: step.run(arguments.out, arguments.blocks),
        "structure": lambda: structure.run(*common, tuple(filter(None, kinds))),
        "mixed": lambda: mixed.run(*common, arguments.bits or 2.5),
    }
    return rest[which]()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", nargs="*", default=list(BENCHMARKS))
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--blocks", type=int, default=22)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--model", type=Path, default=BUNDLED)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--preset", default="balanced")
    parser.add_argument("--heal", action="store_true")
    parser.add_argument("--kinds", default="", help="of structure: id,sparse and so on; all")
    parser.add_argument("--bits", type=float, help="of price (4.3) and mixed (2.5)")
    arguments = parser.parse_args()
    known = (*BENCHMARKS, *MORE)
    unknown = set(arguments.which) - set(known)
    if unknown:
        parser.error(f"unknown benchmark {sorted(unknown)[0]!r}; there are {', '.join(known)}")
    machine = describe_machine() | {"python": platform.python_version()}
    arguments.out.mkdir(parents=True, exist_ok=True)
    for which in arguments.which:
        figures = measure(which, arguments)
        report = {"benchmark": which, "machine": machine, "figures": figures}
        text = json.dumps(report, indent=1)
        (arguments.out / f"{which}.json").write_text(text + "\n", encoding="utf-8")
        print(text)


if __name__ == "__main__":
    main()
