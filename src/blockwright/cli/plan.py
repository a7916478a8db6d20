"""``blockwright plan``: solve another budget from a library, without the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from blockwright.cli import options
from blockwright.cli.library import open_library
from blockwright.cli.output import format_bytes, print_json, print_line
from blockwright.errors import LibraryError, OutputError
from blockwright.types import Plan, Problem


def plan(
    library: Annotated[Path, typer.Argument(help="A library that `fit` wrote.")],
    *,
    out: Annotated[Path, typer.Option(help="Plan file to write.")],
    bits: options.Bits = None,
    size: options.Size = None,
    ratio: options.Ratio = None,
    problem: Annotated[
        str | None,
        typer.Option(help="Start of the digest of a model or calibration (default: the newest)."),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Solve for a budget (--bits, --size or --ratio) from LIBRARY; `fit --plan` builds the plan."""
    budget = options.read_budget(bits, size, ratio)
    problems = open_library(library).problems()
    from blockwright.plan import solve

    chosen = choose_problem(problems, problem, library)
    solved = solve(chosen, budget)
    write_plan(solved, out)
    if as_json:
        print_json(solved.to_json() | {"plan_path": str(out)})
        return
    size = format_bytes(solved.size_bytes)
    print_line(f"{chosen.model}: {solved.bits_per_weight:.3f} bits per weight, {size}")
    print_line(f"plan: {out}")


def choose_problem(problems: Sequence[Problem], wanted: str | None, library: Path) -> Problem:
    """The newest problem; with ``wanted``, whose model or digests start so.

    Raises ``LibraryError`` when there is none, or they are of several models.
    """
    if not problems:
        raise LibraryError(f"library {library} holds no problem yet; run `blockwright fit` first")
    found = [
        problem
        for problem in problems
        if wanted is None
        or any(
            text.startswith(wanted)
            for text in (problem.model, problem.fingerprint, problem.statistics)
        )
    ]
    if len({problem.fingerprint for problem in found}) == 1:
        return found[0]
    models = {f"{problem.fingerprint[:12]} ({problem.model})" for problem in problems}
    asked = "" if wanted is None else f", {len(found)} of them for --problem {wanted}"
    raise LibraryError(
        f"library {library} holds problems of {len(models)} models{asked}; choose with --problem"
        f" and the start of a digest: {', '.join(sorted(models))}"
    )


def write_plan(solved: Plan, out: Path) -> None:
    """Write the plan file, making its folder."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        solved.write(out)
    except OSError as error:
        raise OutputError(f"plan {out} cannot be written: {error.strerror or error}") from None
