"""``blockwright generate``: continue a prompt."""

from __future__ import annotations

from typing import Annotated

import typer

from blockwright.cli import options
from blockwright.cli.output import loading_told, print_json, print_line, stdout_kept_clean
from blockwright.progress import stderr_progress


def generate(
    model: options.Model,
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    *,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate at most.")] = 64,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 takes the most likely token every time.")
    ] = 0.0,
    kv: options.KvFormat = None,
    attention: options.Attention = None,
    seed: options.Seed = 0,
    threads: options.Threads = None,
    device: options.Device = "cpu",
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
) -> None:
    """Continue PROMPT with MODEL."""
    with stdout_kept_clean():
        progress = stderr_progress()
        with loading_told(progress):
            from blockwright.api import generate_text

        continuation = generate_text(
            model,
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
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
        print_json({"prompt": prompt, "text": continuation})
    else:
        print_line(continuation)
