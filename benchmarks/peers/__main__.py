"""``python -m benchmarks.peers [quality] [time] --out DIR``: other tools against ours.

quality: KL of GPTQModel (activation order), AutoRound (200 steps) and HQQ at their own measured
bytes, of our uniform GPTQ, and of our plans at the bits of the best of them.
time: ``fit --preset fast`` against GPTQModel, and a second budget.
Every peer gets an environment of its own under build/peers.  What is finished is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.peers import quality, timing
from benchmarks.peers.running import DEFAULT_PEERS, PEERS
from benchmarks.peers.table import print_quality, print_time
from blockwright.cli.demo import bundled_model
from blockwright.errors import UserError
from blockwright.machine import describe_machine
from blockwright.types import Preset

PARTS = ("quality", "time")


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("which", nargs="*", default=[], help="quality, time; both by default")
    found.add_argument("--out", type=Path, default=Path("build/bench-peers"))
    found.add_argument("--model", default=str(bundled_model()), help="folder, for quality")
    found.add_argument("--seeds", type=int, default=3, help="of the calibration sample")
    found.add_argument("--formats", nargs="+", default=list(quality.FORMATS))
    found.add_argument("--peers", nargs="+", default=list(DEFAULT_PEERS), help=", ".join(PEERS))
    found.add_argument(
        "--presets", nargs="*", default=["balanced", "best"], help="none: peers only"
    )
    found.add_argument("--length", type=int, default=512, help="tokens of a sequence, for quality")
    found.add_argument("--steps", type=int, default=200, help="of AutoRound, per block")
    found.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    found.add_argument("--blocks", type=int, default=22, help="of the random model, for time")
    found.add_argument("--tokens", type=int, default=16_384, help="of calibration, for time")
    return found


def setting_of(options: argparse.Namespace) -> quality.Setting:
    """What to compare; ``UserError`` names what does not exist."""
    check_known("peer", options.peers, PEERS)
    check_known("preset", options.presets, list(Preset))
    for format in options.formats:
        quality.parse_format(format)
    if options.seeds < 1:
        raise UserError(f"--seeds {options.seeds}: give 1 or more")
    return quality.Setting(
        work=options.out / "work",
        model=options.model,
        seeds=range(options.seeds),
        formats=options.formats,
        peers=options.peers,
        presets=[Preset(name) for name in options.presets],
        length=options.length,
        threads=options.threads,
        steps=options.steps,
    )


def check_known(kind: str, names: list[str], known: Any) -> None:
    """Raise ``UserError`` for the first name that is not known."""
    for name in names:
        if name not in known:
            raise UserError(f"unknown {kind} {name!r}; there are {', '.join(known)}")


def main(arguments: list[str] | None = None) -> None:
    """Run, print, write JSON."""
    options = parser().parse_args(arguments)
    console = Console()
    try:
        check_known("part", options.which, PARTS)
        setting = setting_of(options)
        setting.work.mkdir(parents=True, exist_ok=True)
        for part in options.which or PARTS:
            if part == "quality":
                figures = quality.run(setting)
                print_quality(figures, console)
            else:
                figures = timing.run(setting.work, options.blocks, options.tokens, options.threads)
                print_time(figures, console)
            write(options.out / f"peers-{part}.json", part, figures)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def write(path: Path, part: str, figures: dict[str, Any]) -> None:
    """The figures with the machine's description."""
    machine = describe_machine() | {"python": platform.python_version()}
    report = {"benchmark": f"peers {part}", "machine": machine, "figures": figures}
    path.write_text(json.dumps(report, indent=1, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
