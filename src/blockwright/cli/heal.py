"""``blockwright heal``: give back what compression took."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blockwright.cli import options
from blockwright.cli.output import (
    format_bytes,
    loading_told,
    make_table,
    print_json,
    print_line,
    print_table,
    stdout_kept_clean,
)
from blockwright.progress import format_seconds, stderr_progress
from blockwright.types import HealRequest, HealResult


def heal(
    model: Annotated[str, typer.Argument(help="A fitted folder.")],
    *,
    against: Annotated[str, typer.Option(help="The original: a folder, or a hub id.")],
    out: Annotated[Path, typer.Option(help="Folder to write; new or empty.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Text to train on: a file, a folder, or JSONL with a `text` field; a tenth of it "
            "chooses, and a tenth is held out without --eval-text (default: shipped text)."
        ),
    ] = None,
    eval_text: options.EvalText = None,
    adapter: Annotated[
        str,
        typer.Option(
            help="What is trained, for all linears: a name of `blockwright methods`, with options "
            "as in lora@rank=16.  auto chooses by how each is stored, and trains norms and biases, "
            "too."
        ),
    ] = "auto",
    optimizer: Annotated[
        str,
        typer.Option(
            help="adam or sgd; adam8bit and sgd8bit keep states in 8 bits, adam8bit-bnb by "
            "bitsandbytes; mfac takes natural gradients; bcd moves a few blocks at a time."
        ),
    ] = "adam",
    minutes: Annotated[
        float | None,
        typer.Option(help="Time to train, turned into steps by one timed probe (default: 5)."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps to train, in place of --minutes.")
    ] = None,
    blockwise: Annotated[
        bool,
        typer.Option(
            "--blockwise",
            help="One block at a time, towards the original's hidden states: the memory of one "
            "block, whatever the depth; --steps are then those of every block (default: 64).",
        ),
    ] = False,
    rate: Annotated[
        float | None,
        typer.Option(help="First learning rate: a step's change, relative (default: 0.005)."),
    ] = None,
    tables: Annotated[
        bool, typer.Option(help="With auto: train embeddings and heads that are kept.")
    ] = True,
    save_adapter: Annotated[
        Path | None,
        typer.Option(help="Folder for the adapter in peft's files, beside the merged model."),
    ] = None,
    batch_tokens: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens of a step (default: 2048; 1024 with --blockwise)."),
    ] = None,
    sequence_length: options.SequenceLength = None,
    eval_tokens: options.EvalTokens = None,
    seed: options.Seed = 0,
    threads: options.Threads = None,
    device: options.Device = "cpu",
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
) -> None:
    """Train the fitted MODEL towards its original, and write the healed model to --out.

    What is kept is the best state on text that is not trained on.  Killed at any moment, the same
    command resumes.
    """
    request = HealRequest(
        model=model,
        against=against,
        out=out,
        data=data,
        eval_text=eval_text,
        adapter=adapter,
        optimizer=optimizer,
        minutes=minutes,
        steps=steps,
        blockwise=blockwise,
        rate=rate,
        tables=tables,
        save_adapter=save_adapter,
        batch_tokens=batch_tokens,
        sequence_length=sequence_length,
        eval_tokens=eval_tokens,
        revision=revision,
        seed=seed,
        threads=threads,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    with stdout_kept_clean():
        progress = stderr_progress()
        with loading_told(progress):
            from blockwright import pipeline

        result = pipeline.heal(request, progress)
    if as_json:
        print_json(result.to_json())
    else:
        print_heal(result)


def print_heal(result: HealResult) -> None:
    """The three models side by side, and what was trained."""
    columns = (result.original, result.before, result.after)
    rows = [
        ("size", "-", format_bytes(result.size_bytes_before), format_bytes(result.size_bytes)),
        ("perplexity", *(_cell(quality.perplexity, ".3f") for quality in columns)),
        ("KL, nats per token", *(_cell(quality.kl_divergence, ".5f") for quality in columns)),
        ("top-1 agreement", *(_cell(quality.top1_agreement, ".2%") for quality in columns)),
        ("relative error", *(_cell(quality.relative_error, ".5f") for quality in columns)),
    ]
    measured = [row for row in rows if any(cell != "-" for cell in row[1:])]
    print_table(make_table(("", "original", "fitted", "healed"), measured))
    print_line("")
    if result.recovered is not None:
        print_line(f"recovered {result.recovered:.1%} of the excess loss")
    adapters = ", ".join(f"{name} at {hosts} hosts" for name, hosts in result.adapters.items())
    print_line(
        f"trained {result.trainable} numbers ({adapters}) for {result.steps} steps of"
        f" {result.tokens_per_step} tokens; the best was step {result.best_step};"
        f" {result.optimizer} kept {format_bytes(result.optimizer_bytes)}"
    )
    if result.rollbacks:
        print_line(f"rolled back {result.rollbacks} times: the loss was not finite")
    for note in result.notes:
        print_line(f"note: {note}")
    print_line(f"took {format_seconds(result.seconds)}")
    print_line(f"folder: {result.out}")


def _cell(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)
