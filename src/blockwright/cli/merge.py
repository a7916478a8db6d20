"""``blockwright merge``: an adapter of peft's files into a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blockwright.cli import options
from blockwright.cli.output import loading_told, print_figures, print_json, stdout_kept_clean
from blockwright.progress import stderr_progress


def merge(
    model: options.Model,
    *,
    adapter: Annotated[
        Path,
        typer.Option(help="Folder of adapter_config.json and adapter_model.safetensors (peft's)."),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; new or empty.")],
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
) -> None:
    """Merge an adapter that was trained elsewhere into MODEL: dense weights take it in, packed ones
    keep it as a path beside them.
    """
    with stdout_kept_clean():
        progress = stderr_progress()
        with loading_told(progress):
            from blockwright import pipeline

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
