"""``blockwright evaluate``: quality, size and speed of a model on a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blockwright.cli import options
from blockwright.cli.output import (
    loading_told,
    print_figures,
    print_json,
    stdout_kept_clean,
)
from blockwright.progress import stderr_progress


def evaluate(
    model: options.Model,
    *,
    eval_text: Annotated[
        Path, typer.Option(help="A text file, a folder of them, or JSONL with a `text` field.")
    ],
    against: Annotated[
        str | None, typer.Option(help="The original: KL divergence and agreement are with it.")
    ] = None,
    eval_tokens: options.EvalTokens = None,
    sequence_length: options.SequenceLength = None,
    kv: options.KvFormat = None,
    attention: options.Attention = None,
    seed: options.Seed = 0,
    threads: options.Threads = None,
    device: options.Device = "cpu",
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
) -> None:
    """Measure MODEL on a text: perplexity, distance from the original, size, speed, memory."""
    with stdout_kept_clean():
        progress = stderr_progress()
        with loading_told(progress):
            from blockwright.api import evaluate_model

        figures = evaluate_model(
            model,
            against=against,
            eval_text=eval_text,
            eval_tokens=eval_tokens,
            sequence_length=sequence_length,
            kv=kv,
            attention=attention,
            revision=revision,
            seed=seed,
            threads=threads,
            device=device,
            trust_remote_code=trust_remote_code,
            progress=progress,
        )
    if as_json:
        print_json(figures)
    else:
        print_figures(figures)
