"""``blockwright inspect``: the blocks and sites of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from blockwright.cli import options
from blockwright.cli.output import (
    make_table,
    print_figures,
    print_json,
    print_line,
    print_table,
    stdout_kept_clean,
)
from blockwright.progress import stderr_progress


def inspect(
    model: options.Model,
    *,
    scores: Annotated[
        Path | None,
        typer.Option(
            help="A text file, a folder of them, or JSONL with a `text` field: score the blocks on"
            " it (influence, and loss without each)."
        ),
    ] = None,
    score_tokens: Annotated[
        int | None, typer.Option(min=2, help="Tokens to score on (default: 4096).")
    ] = None,
    threads: options.Threads = None,
    device: options.Device = "cpu",
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
) -> None:
    """Show what MODEL is made of: blocks, sites, and the bytes of stem and head; with --scores,
    what each block does.
    """
    with stdout_kept_clean():
        from blockwright.api import inspect_model

        found = inspect_model(model, revision=revision, trust_remote_code=trust_remote_code)
        if scores is not None:
            from blockwright.api import score_blocks

            found["scores"] = score_blocks(
                model,
                text=scores,
                tokens=score_tokens,
                threads=threads,
                device=device,
                revision=revision,
                trust_remote_code=trust_remote_code,
                progress=stderr_progress(),
            )
    if as_json:
        print_json(found)
        return
    print_figures({name: value for name, value in found.items() if not isinstance(value, list)})
    print_line("")
    print_sites(found["sites"])
    if scores is not None:
        print_line("")
        print_scores(found["scores"])


def print_sites(sites: Sequence[Mapping[str, Any]]) -> None:
    """Id, kind, shape and parameter count of every site."""
    rows = [
        (site["id"], site["kind"], " x ".join(map(str, site["shape"])), f"{site['parameters']:,}")
        for site in sites
    ]
    print_table(make_table(("site", "kind", "shape", "parameters"), rows, left=2))


def print_scores(scores: Sequence[Mapping[str, Any]]) -> None:
    """One line per block; ``-`` where a model has no such figure."""
    names = [name for name in scores[0] if name != "block"]
    rows = [
        (str(each["block"]), *("-" if each[n] is None else f"{each[n]:.4g}" for n in names))
        for each in scores
    ]
    print_table(make_table(("block", *(name.replace("_", " ") for name in names)), rows, left=1))
