"""``blockwright merge``: an adapter of peft's files, or other models, into a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blockwright.cli import options
from blockwright.cli.output import loading_told, print_figures, print_json, stdout_kept_clean
from blockwright.errors import AdapterError
from blockwright.progress import stderr_progress
from blockwright.types import AverageResult, MergeResult


def merge(
    model: options.Model,
    *,
    out: Annotated[Path, typer.Option(help="Folder to write; new or empty.")],
    adapter: Annotated[
        Path | None,
        typer.Option(help="Folder of adapter_config.json and adapter_model.safetensors (peft's)."),
    ] = None,
    others: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            help="Another model of the same shape (repeatable): the mean of all is written, each "
            "with its FFN channels and heads in MODEL's order.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Text that units are matched on, for --with (default: shipped text)."),
    ] = None,
    align: Annotated[
        bool, typer.Option(help="For --with: match units; else tensors are averaged as they are.")
    ] = True,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
) -> None:
    """Merge an adapter that was trained elsewhere into MODEL (dense weights take it in, packed ones
    keep it as a path beside them), or average MODEL with others.
    """
    if (adapter is None) == (not others):
        raise AdapterError("merge takes --adapter, or models to average with --with; give one")
    with stdout_kept_clean():
        progress = stderr_progress()
        with loading_told(progress):
            from blockwright import pipeline

        result: MergeResult | AverageResult
        if adapter is None:
            result = pipeline.average(
                (model, *(others or ())),
                out,
                data=data,
                align=align,
                trust_remote_code=trust_remote_code,
                progress=progress,
            )
        else:
            result = pipeline.merge(
                model,
                adapter,
                out,
                revision=revision,
                trust_remote_code=trust_remote_code,
                progress=progress,
            )
    if as_json:
        print_json(result.to_json())
    else:
        print_figures(result.to_json())
