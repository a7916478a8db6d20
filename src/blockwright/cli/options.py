"""Options that several commands share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from blockwright.errors import BudgetError
from blockwright.types import DEFAULT_CONTEXT, Budget, Candidate, Phase, parse_size

Model = Annotated[str, typer.Argument(help="A folder of safetensors, or a hub id.")]
ModelOrRecipe = Annotated[
    str | None, typer.Argument(help="A folder of safetensors, or a hub id (or the recipe's).")
]
RecipeFile = Annotated[
    Path | None,
    typer.Option(help="Run this blockwright.toml again; options given beside it override it."),
]
Bits = Annotated[
    float | None,
    typer.Option(help="Budget: bits per weight of the block linears, scales included."),
]
Size = Annotated[
    str | None, typer.Option(help='Budget: size of the safetensors files, as bytes or "4GB".')
]
Ratio = Annotated[
    float | None, typer.Option(help="Budget: size as a fraction of the original's size.")
]
Ram = Annotated[
    str | None,
    typer.Option(
        help="Limit: memory of the loaded model at --context tokens, weights, KV cache and "
        'activations, as bytes or "4GB".'
    ),
]
Speedup = Annotated[
    float | None,
    typer.Option(help="Limit: times as fast as the original in --phase, timed on this machine."),
]
PhaseOption = Annotated[Phase, typer.Option(help="What --speedup is measured on.")]
Batch = Annotated[int, typer.Option(min=1, help="Rows at a time, for --speedup.")]
Context = Annotated[int, typer.Option(min=1, help="Tokens of context, for --ram and --speedup.")]
ProfileFile = Annotated[
    Path | None,
    typer.Option(
        "--profile",
        help="Machine profile of `blockwright profile` (default: the library's, measured once).",
    ),
]
Candidates = Annotated[
    str | None,
    typer.Option(
        help="What may be chosen, as A,B,...; see `blockwright methods` (default: the preset's)."
    ),
]
EvalText = Annotated[
    Path | None,
    typer.Option(
        help="Held-out text: a file, a folder, or JSONL with a `text` field (default: shipped)."
    ),
]
EvalTokens = Annotated[int | None, typer.Option(min=2, help="Tokens of held-out text to use.")]
SequenceLength = Annotated[int | None, typer.Option(min=2, help="Tokens per sequence.")]
KvFormats = Annotated[
    str | None,
    typer.Option(
        help="Formats that KV caches may take under --ram, as A,B,... or keep for none "
        "(default: int8,int4)."
    ),
]
KvFormat = Annotated[
    str | None,
    typer.Option(
        help="Format of the KV cache: int8, int4, bfp4 ..., or keep for an ordinary one "
        "(default: as the folder says)."
    ),
]
AttentionPolicies = Annotated[
    str | None,
    typer.Option(
        help="Attention policies that blocks may take under --speedup with --phase prefill, as "
        "A,B,... (default: none)."
    ),
]
Attention = Annotated[
    str | None,
    typer.Option(
        help="Attention policy of every block: xattention, moba@block=64,keep=8 ..., a .json file "
        "with one per block, or keep for the model's own (default: as the folder says)."
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of every random choice.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads (default: all cores).")]
Device = Annotated[str, typer.Option(help="Where to compute: cpu or cuda.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the code that the model folder brings.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print memory, disk and minutes, and stop.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]

REQUEST_FIELDS = {
    **dict.fromkeys(("bits", "size", "ratio", "ram", "speedup"), "budget"),
    **dict.fromkeys(("phase", "batch", "context"), "budget"),
    "no_speed": "speed",
}
"""Parameters of ``fit`` that are named otherwise in ``FitRequest``."""
BESIDE_THE_REQUEST = {"dry_run", "as_json"}


def read_budget(
    bits: float | None,
    size: str | None,
    ratio: float | None,
    ram: str | None = None,
    speedup: float | None = None,
    *,
    phase: Phase = Phase.DECODE,
    batch: int = 1,
    context: int = DEFAULT_CONTEXT,
) -> Budget:
    """The limits that were given, checked."""
    return Budget(
        bits=bits,
        size_bytes=None if size is None else parse_size(size),
        ratio=ratio,
        ram_bytes=None if ram is None else parse_size(ram),
        speedup=speedup,
        phase=phase,
        batch=batch,
        context=context,
    )


def read_model(model: str | None, recipe: Path | None) -> str:
    """The model; empty where the recipe names it."""
    if model is None and recipe is None:
        raise typer.BadParameter("Missing argument 'MODEL'.")
    return model or ""


def given_fields(invocation: typer.Context) -> set[str]:
    """Fields of ``FitRequest`` that were written on the command line."""
    names = {name for name in invocation.params if written(invocation, name)}
    return {REQUEST_FIELDS.get(name, name) for name in names - BESIDE_THE_REQUEST}


def written(invocation: typer.Context, name: str) -> bool:
    """Whether a parameter was given, and is not its default."""
    source = invocation.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def refuse_workload_without_limit(invocation: typer.Context) -> None:
    """A recipe's limits come with their own phase, batch and context."""
    given = [name for name in ("phase", "batch", "context") if written(invocation, name)]
    if given:
        raise BudgetError(
            f"--{given[0]} belongs to a limit given beside it; the recipe's has its own: repeat"
            " --ram or --speedup, or leave it out"
        )


def refuse_limits_beside_plan(*given: float | str | None) -> None:
    """A plan file carries its own limits."""
    if any(value is not None for value in given):
        raise BudgetError(
            "--plan decides the size and carries its own limits; leave --bits, --size, --ratio,"
            " --ram and --speedup out"
        )


def read_candidates(text: str | None) -> tuple[str, ...]:
    """Split ``A,B@x=1,y=2,C`` into candidates, checked against the grammar.

    After an ``@``, a comma followed by ``name=`` goes on with the options.
    """
    if text is None:
        return ()
    parts = re.split(r",(?![a-z_]+=)", text)
    return tuple(str(Candidate.parse(part)) for part in parts)
