"""``blockwright plan``: solve another budget from a library, without the model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blockwright.cli import options
from blockwright.cli.library import open_library
from blockwright.cli.output import format_bytes, print_json, print_line
from blockwright.errors import LibraryError, OutputError, ProfileError
from blockwright.types import DEFAULT_CONTEXT, Budget, Phase, Plan, Problem, Profile

if TYPE_CHECKING:
    from blockwright.library import Library


def plan(
    library: Annotated[Path, typer.Argument(help="A library that `fit` wrote.")],
    *,
    out: Annotated[Path, typer.Option(help="Plan file to write.")],
    bits: options.Bits = None,
    size: options.Size = None,
    ratio: options.Ratio = None,
    ram: options.Ram = None,
    speedup: options.Speedup = None,
    phase: options.PhaseOption = Phase.DECODE,
    batch: options.Batch = 1,
    context: options.Context = DEFAULT_CONTEXT,
    profile: options.ProfileFile = None,
    problem: Annotated[
        str | None,
        typer.Option(help="Start of the digest of a model or calibration (default: the newest)."),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Solve for a budget from LIBRARY, without the model; `fit --plan` builds the plan.

    The limits are those of `fit`; latencies come from --profile or from profiles in LIBRARY.
    """
    budget = options.read_budget(
        bits, size, ratio, ram, speedup, phase=phase, batch=batch, context=context
    )
    opened = open_library(library)
    from blockwright.plan import solve

    chosen = choose_problem(opened.problems(), problem, library)
    solved = solve(timed_problem(chosen, budget, profile, opened), budget)
    write_plan(solved, out)
    if as_json:
        print_json(solved.to_json() | {"plan_path": str(out)})
        return
    print_line(f"{chosen.model}: {describe_plan(solved)}")
    print_line(f"plan: {out}")


def describe_plan(plan: Plan) -> str:
    """What a plan takes, in one line."""
    parts = [f"{plan.bits_per_weight:.3f} bits per weight", format_bytes(plan.size_bytes)]
    context = (plan.workload or {}).get("context")
    if plan.ram_bytes is not None:
        parts.append(f"{format_bytes(plan.ram_bytes)} of memory at {context} tokens")
    if plan.speedup is not None:
        parts.append(f"predicted {plan.speedup:.2f} times as fast")
    return ", ".join(parts)


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


def timed_problem(problem: Problem, budget: Budget, file: Path | None, library: Library) -> Problem:
    """The problem with the times of a profile file, of its own, or of one in the library."""
    from blockwright.plan import with_profile

    if file is not None:
        return with_profile(problem, Profile.read(file))
    timing = problem.timing
    if budget.speedup is None or (timing is not None and timing.workload == budget.workload):
        return problem
    for profile in library.profiles():
        if profile.workload == budget.workload:
            with suppress(ProfileError):  # it is of another model
                return with_profile(problem, profile)
    return problem


def write_plan(solved: Plan, out: Path) -> None:
    """Write the plan file, making its folder."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        solved.write(out)
    except OSError as error:
        raise OutputError(f"plan {out} cannot be written: {error.strerror or error}") from None
