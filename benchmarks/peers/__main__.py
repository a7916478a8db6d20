"""``python -m benchmarks.peers [quality] [time] [decode] [report] --out DIR``: other tools against
ours.

quality: KL and excess loss of every peer at its own measured bytes, of our uniform GPTQ, and of our
plans at the bits of the best of them.
time: ``fit --preset fast`` against every peer, with peak memory, and a second budget.
decode: tokens per second, prefill and memory of what comes out, against llama.cpp, OpenVINO and
torchao.
report: tables and plots of what was measured, as Markdown, JSON and SVG under --docs.
Every peer gets an environment of its own under build/peers.  What is finished is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.models import random_llama
from benchmarks.peers import decoding, quality, timing
from benchmarks.peers.page import write_page
from benchmarks.peers.running import DEFAULT_PEERS, PEERS
from benchmarks.peers.table import print_decode, print_quality, print_time
from blockwright.cli.demo import bundled_model
from blockwright.errors import UserError
from blockwright.machine import describe_machine
from blockwright.types import Preset

PARTS = ("quality", "time", "decode", "report")


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("which", nargs="*", default=[], help=f"{', '.join(PARTS)}; all by default")
    found.add_argument("--out", type=Path, default=Path("build/bench-peers"))
    found.add_argument("--docs", type=Path, default=Path("docs"), help="of the report")
    found.add_argument(
        "--model",
        type=Path,
        help="folder; by default the bundled one for quality, a random one for time and decode",
    )
    found.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    found.add_argument("--peers", nargs="+", default=list(DEFAULT_PEERS), help=", ".join(PEERS))
    found.add_argument("--steps", type=int, default=200, help="of AutoRound, per block")
    found.add_argument("--blocks", type=int, default=22, help="of the random model")
    of_quality = found.add_argument_group("quality")
    of_quality.add_argument("--seeds", type=int, default=3, help="of the calibration sample")
    of_quality.add_argument("--formats", nargs="+", default=list(quality.FORMATS))
    of_quality.add_argument(
        "--presets", nargs="*", default=["balanced", "best"], help="none: peers only"
    )
    of_quality.add_argument("--length", type=int, default=512, help="tokens of a sequence")
    of_time = found.add_argument_group("time")
    of_time.add_argument("--tokens", type=int, default=16_384, help="of calibration")
    of_decode = found.add_argument_group("decode")
    of_decode.add_argument("--rounds", type=int, default=3, help="fresh processes of each")
    of_decode.add_argument("--prompt", type=int, default=decoding.PROMPT_TOKENS, help="its tokens")
    of_decode.add_argument(
        "--contenders",
        nargs="+",
        default=list(decoding.CONTENDERS),
        help=", ".join(decoding.CONTENDERS),
    )
    return found


def check(options: argparse.Namespace) -> None:
    """``UserError`` names what does not exist."""
    check_known("part", options.which, PARTS)
    check_known("peer", options.peers, PEERS)
    check_known("contender", options.contenders, decoding.CONTENDERS)
    check_known("preset", options.presets, list(Preset))
    for format in options.formats:
        quality.parse_format(format)
    for name in ("seeds", "rounds", "prompt", "blocks", "tokens", "threads"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)}: give 1 or more")


def check_known(kind: str, names: list[str], known: Any) -> None:
    """Raise ``UserError`` for the first name that is not known."""
    for name in names:
        if name not in known:
            raise UserError(f"unknown {kind} {name!r}; there are {', '.join(known)}")


def run_quality(options: argparse.Namespace) -> dict[str, Any]:
    """Everybody's losses."""
    setting = quality.Setting(
        work=options.out / "work",
        model=str(options.model or bundled_model()),
        seeds=range(options.seeds),
        formats=options.formats,
        peers=options.peers,
        presets=[Preset(name) for name in options.presets],
        length=options.length,
        threads=options.threads,
        steps=options.steps,
    )
    return quality.run(setting)


def run_time(options: argparse.Namespace) -> dict[str, Any]:
    """Everybody's time and memory."""
    setting = timing.Setting(
        work=options.out / "work",
        model=options.model,
        blocks=options.blocks,
        tokens=options.tokens,
        threads=options.threads,
        peers=[name for name in options.peers if not PEERS[name].mixed],
        steps=options.steps,
    )
    return timing.run(setting)


def run_decode(options: argparse.Namespace) -> dict[str, Any]:
    """Everybody's speed."""
    work = options.out / "work"
    setting = decoding.Setting(
        work=work,
        model=options.model or random_llama(work / f"llama-{options.blocks}", options.blocks),
        names=options.contenders,
        rounds=options.rounds,
        threads=options.threads,
        prompt_tokens=options.prompt,
    )
    return decoding.run(setting)


RUNS: Mapping[str, tuple[Callable[..., dict[str, Any]], Callable[..., None]]] = {
    "quality": (run_quality, print_quality),
    "time": (run_time, print_time),
    "decode": (run_decode, print_decode),
}


def main(arguments: list[str] | None = None) -> None:
    """Run, print, write JSON; then the page."""
    options = parser().parse_args(arguments)
    console = Console()
    try:
        check(options)
        (options.out / "work").mkdir(parents=True, exist_ok=True)
        for part in [part for part in options.which or PARTS if part in RUNS]:
            run, show = RUNS[part]
            figures = run(options)
            show(figures, console)
            write(options.out / f"peers-{part}.json", part, figures, options.threads)
        if not options.which or "report" in options.which:
            console.print(f"wrote {write_page(options.out, options.docs)}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def write(path: Path, part: str, figures: dict[str, Any], threads: int) -> None:
    """The figures with the machine's description."""
    machine = describe_machine() | {"python": platform.python_version(), "threads": threads}
    report = {"benchmark": f"peers {part}", "machine": machine, "figures": figures}
    path.write_text(json.dumps(report, indent=1, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
