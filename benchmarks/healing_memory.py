"""Peak memory of healing block by block, against that of evaluating the fitted model, each in a
process of its own.

    python -m benchmarks.healing_memory --out FOLDER [--blocks 2 4] [--tokens 2048]

Models: the bundled one and random ones of Llama shape (1.1 billion parameters with 22 blocks),
their linears as int4-g64.  ``FOLDER`` gets models, texts and ``healing_memory.json``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.memory import character_tokenizer, random_words
from benchmarks.models import random_llama, uniform_folder
from blockwright import pipeline
from blockwright.api import evaluate_model
from blockwright.checkpoint import write_json_atomic
from blockwright.pipeline.proving import peak_rss_bytes
from blockwright.texts import bundled_documents
from blockwright.types import HealRequest

BUNDLED = Path(__file__).resolve().parents[1] / "src" / "blockwright" / "bundled" / "model"
BOUND = 1.6
"""Largest peak of healing, over that of evaluating."""
FORMAT = "int4-g64"
STEPS, LENGTH = 4, 512


def compared(name: str, model: Path, text: Path, work: Path, tokens: int) -> dict[str, Any]:
    """Both peaks of one model, and their ratio."""
    fitted = uniform_folder(model, FORMAT, work / f"{name}-fitted")
    healed = work / f"{name}-healed"
    for path in (healed, healed.with_name(f"{healed.name}.healing")):
        shutil.rmtree(path, ignore_errors=True)
    places = [str(place) for place in (fitted, model, text, healed)]
    peaks = {what: peak_of(what, places, tokens) for what in ("evaluate", "heal")}
    return {"model": name, **peaks, "ratio": peaks["heal"] / peaks["evaluate"], "bound": BOUND}


def peak_of(what: str, places: list[str], tokens: int) -> int:
    """Largest resident bytes of a fresh process."""
    command = [sys.executable, "-m", "benchmarks.healing_memory", "--child", what, *places]
    command += ["--tokens", str(tokens)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def run_child(what: str, places: list[Path], tokens: int) -> None:
    """The work of one process; its peak is the last line."""
    fitted, model, text, healed = places
    if what == "evaluate":
        evaluate_model(str(fitted), eval_text=text, eval_tokens=tokens, sequence_length=LENGTH)
    else:
        pipeline.heal(
            HealRequest(
                model=str(fitted),
                against=str(model),
                out=healed,
                data=text,
                blockwise=True,
                steps=STEPS,
                eval_tokens=tokens,
                sequence_length=LENGTH,
            )
        )
    print(peak_rss_bytes())


def main() -> None:
    """Print one line per model and write them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--blocks", type=int, nargs="*", default=[2, 4])
    parser.add_argument("--tokens", type=int, default=2048, help="held-out tokens")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        run_child(arguments.child[0], [Path(p) for p in arguments.child[1:]], arguments.tokens)
        return
    if arguments.out is None:
        parser.error("--out is needed")
    arguments.out.mkdir(parents=True, exist_ok=True)
    found = []
    for name, model, text in cases(arguments.out, arguments.blocks):
        found.append(compared(name, model, text, arguments.out, arguments.tokens))
        print(json.dumps(found[-1]), flush=True)
    write_json_atomic(arguments.out / "healing_memory.json", found)


def cases(work: Path, depths: list[int]) -> list[tuple[str, Path, Path]]:
    """Name, folder and text of every model."""
    shipped, random = work / "shipped.txt", work / "random.txt"
    shipped.write_text("\n\n".join(bundled_documents("calibration")), encoding="utf-8")
    random.write_text(random_words(200_000), encoding="utf-8")
    found = [("bundled", BUNDLED, shipped)]
    for depth in depths:
        folder = random_llama(work / f"llama-{depth}", depth)
        character_tokenizer().save_pretrained(folder)
        found.append((f"llama of {depth} blocks", folder, random))
    return found


if __name__ == "__main__":
    main()
