"""``blockwright demo``: fit the bundled model, no download needed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from blockwright.cli import options
from blockwright.cli.fit import run_fit
from blockwright.errors import ModelError
from blockwright.types import Budget, FitRequest, Preset

DEMO_BITS = 4.3


def demo(
    *,
    out: Annotated[Path, typer.Option(help="Folder to write; an earlier demo is replaced.")] = Path(
        "blockwright-demo"
    ),
    threads: options.Threads = None,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Fit the bundled model to 4.3 bits per weight with the fast preset; its library is kept beside
    --out.
    """
    request = FitRequest(
        model=str(bundled_model()),
        out=out,
        budget=Budget(bits=DEMO_BITS),
        preset=Preset.FAST,
        library=out.with_name(out.name + "-library"),
        threads=threads,
    )
    if is_fitted(out) and dry_run:
        request = replace(request, out=out.with_name(out.name + "-next"))
    elif is_fitted(out):
        shutil.rmtree(out)
    run_fit(request, dry_run=dry_run, as_json=as_json)


def bundled_model() -> Path:
    """Folder of the model that ships with the package."""
    folder = Path(str(files("blockwright"))) / "bundled" / "model"
    if not (folder / "config.json").is_file():
        raise ModelError(f"the bundled model is not in {folder}; reinstall blockwright")
    return folder


def is_fitted(folder: Path) -> bool:
    """Whether a folder was written by Blockwright."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    quantization = config.get("quantization_config") if isinstance(config, dict) else None
    return isinstance(quantization, dict) and quantization.get("quant_method") == "blockwright"
