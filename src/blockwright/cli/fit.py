"""``blockwright fit``: a model and a budget in, a smaller folder out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from blockwright.cli import options
from blockwright.cli.fit_report import print_fit, print_price
from blockwright.cli.output import loading_told, print_json, stdout_kept_clean
from blockwright.progress import stderr_progress
from blockwright.types import DEFAULT_CONTEXT, FitRequest, Phase, Preset, Recipe


def fit(
    invocation: typer.Context,
    model: options.ModelOrRecipe = None,
    *,
    out: Annotated[Path, typer.Option(help="Folder to write; new or empty.")],
    bits: options.Bits = None,
    size: options.Size = None,
    ratio: options.Ratio = None,
    ram: options.Ram = None,
    speedup: options.Speedup = None,
    lossless: Annotated[
        bool,
        typer.Option(
            "--lossless",
            help="In place of a budget: keep every bit of a bfloat16 model, in about 0.68 of its "
            "bytes.  Needs no text.",
        ),
    ] = False,
    phase: options.PhaseOption = Phase.DECODE,
    batch: options.Batch = 1,
    context: options.Context = DEFAULT_CONTEXT,
    kv: options.KvFormats = None,
    attention: options.AttentionPolicies = None,
    profile: options.ProfileFile = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="Text for the statistics: a file, a folder, or JSONL with a `text` field "
            "(default: shipped text, and text sampled from the model itself)."
        ),
    ] = None,
    eval_text: options.EvalText = None,
    candidates: options.Candidates = None,
    preset: Annotated[Preset, typer.Option(help="How much time to spend.")] = Preset.BALANCED,
    library: Annotated[
        Path | None,
        typer.Option(
            help="Folder of built variants, reused by later runs "
            "(default: ~/.cache/blockwright/library)."
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            help="Build this plan file instead of solving for a budget.  An edited plan keeps the "
            "`limits` it was solved under; raise or remove them in the file to go over."
        ),
    ] = None,
    heal: Annotated[
        float | None,
        typer.Option(
            help="Minutes to train the assembled model towards the original, as `blockwright heal` "
            "does."
        ),
    ] = None,
    heal_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps to train it, in place of --heal.")
    ] = None,
    seed: options.Seed = 0,
    threads: options.Threads = None,
    calibration_tokens: Annotated[
        int | None, typer.Option(min=2, help="Tokens of calibration text to use.")
    ] = None,
    sampled_share: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of the calibration tokens that the model writes itself "
            "(default: a quarter with --preset fast, else half; 0 with --calibration).",
        ),
    ] = None,
    sequence_length: options.SequenceLength = None,
    eval_tokens: options.EvalTokens = None,
    recipe: options.RecipeFile = None,
    dry_run: options.DryRun = False,
    no_speed: Annotated[
        bool, typer.Option("--no-speed", help="Do not time the models at the end.")
    ] = False,
    device: options.Device = "cpu",
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
) -> None:
    """Fit MODEL to a budget (--bits, --size or --ratio, with or without --ram and --speedup; or
    --lossless) and write it to --out.

    Killed at any moment, the same command resumes.  With --recipe, what is given beside it takes
    the place of what the recipe says.
    """
    budget = None
    limits = (bits, size, ratio, ram, speedup)
    if plan is not None:
        options.refuse_limits_beside_plan(*limits)
    elif limits != (None,) * 5 or (recipe is None and not lossless):
        budget = options.read_budget(
            bits, size, ratio, ram, speedup, phase=phase, batch=batch, context=context
        )
    else:
        options.refuse_workload_without_limit(invocation)
    request = FitRequest(
        model=options.read_model(model, recipe),
        out=out,
        budget=budget,
        lossless=lossless,
        preset=preset,
        candidates=options.read_candidates(candidates),
        calibration=calibration,
        eval_text=eval_text,
        library=library,
        plan=plan,
        kv=options.read_candidates(kv),
        attention=options.read_candidates(attention),
        profile=profile,
        heal=heal,
        heal_steps=heal_steps,
        revision=revision,
        seed=seed,
        threads=threads,
        calibration_tokens=calibration_tokens,
        sampled_share=sampled_share,
        sequence_length=sequence_length,
        eval_tokens=eval_tokens,
        device=device,
        trust_remote_code=trust_remote_code,
        speed=not no_speed,
        recipe=recipe,
    )
    if recipe is not None:
        request = from_recipe(recipe, request, options.given_fields(invocation))
    run_fit(request, dry_run=dry_run, as_json=as_json)


def from_recipe(recipe: Path, asked: FitRequest, given: set[str]) -> FitRequest:
    """The recipe's request with the ``given`` fields taken from ``asked``.

    A budget, a plan and ``lossless`` take each other's place, as minutes and steps of healing do.
    """
    read = Recipe.read(recipe).request(
        out=asked.out,
        library=asked.library,
        recipe=recipe,
        trust_remote_code=asked.trust_remote_code,
    )
    for instead in ({"budget", "plan", "lossless"}, {"heal", "heal_steps"}):
        given = given | instead if instead & given else given
    return replace(read, **{name: getattr(asked, name) for name in given})


def run_fit(request: FitRequest, *, dry_run: bool, as_json: bool) -> None:
    """Price or fit, and print the result."""
    with stdout_kept_clean():
        progress = stderr_progress()
        with loading_told(progress):
            from blockwright import pipeline
            from blockwright.stream.freed import return_freed_memory

        return_freed_memory()
        price = pipeline.price(request, progress) if dry_run else None
        result = None if dry_run else pipeline.fit(request, progress)
    if price is not None:
        print_price(price, as_json=as_json)
    elif result is not None and as_json:
        print_json(result.to_json())
    elif result is not None:
        print_fit(result)
