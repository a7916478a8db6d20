"""``blockwright bench``: speed and faithfulness of single parts, measured on this machine."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from blockwright.cli import options
from blockwright.cli.demo import bundled_model
from blockwright.cli.output import print_figures, print_json, print_line, stdout_kept_clean
from blockwright.errors import AttentionError, OutputError
from blockwright.progress import stderr_progress

app = typer.Typer(help="Measure single parts on this machine.", no_args_is_help=True)


@app.callback()
def root() -> None:
    """Measure single parts on this machine."""


@app.command("attention")
def attention(
    *,
    policy: Annotated[
        str | None,
        typer.Option(
            help="An attention policy, e.g. xattention or moba@block=64,keep=8 (default: all that "
            "is promised of policies and mixers, as JSON; about ten minutes)."
        ),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Queries and keys, with --policy.")
    ] = None,
    density: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Move the policy's budget to this share of tiles."),
    ] = None,
    data: Annotated[str, typer.Option(help="What is planted in queries and keys.")] = "mixed",
    page: Annotated[
        Path | None,
        typer.Option(
            help="HTML file to write.  With --policy, in place of measuring: the tiles that each "
            "head of a block of --model visits on shipped text.  Without: tables, and growth with "
            "the length in one plot."
        ),
    ] = None,
    fit_heads: Annotated[
        Path | None,
        typer.Option(
            help="JSON file to write, in place of measuring: --policy, an xattention, with a "
            "threshold for every head of --model at --density.  generate and evaluate take it as "
            "--attention FILE.json."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Model for --page and --fit-heads (default: the one that ships)."),
    ] = None,
    block: Annotated[int, typer.Option(min=0, help="Block for --page.")] = 0,
    heads: Annotated[int, typer.Option(min=1, help="Query heads, 64 wide.")] = 4,
    kv_heads: Annotated[int | None, typer.Option(min=1, help="Key/value heads.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs; the median counts.")] = 5,
    seed: options.Seed = 0,
    threads: options.Threads = None,
    as_json: options.AsJson = False,
) -> None:
    """Density, recall, error and time of a policy beside fused dense attention, in bfloat16."""
    if policy is not None and tokens is None:
        raise AttentionError("bench attention: --policy needs --tokens, e.g. --tokens 8192")
    if fit_heads is not None:
        write_heads(fit_heads, policy, model or str(bundled_model()), tokens, density)
        return
    if page is not None and policy is not None and tokens is not None:
        draw_tiles(page, policy, model or str(bundled_model()), block=block, tokens=tokens)
        return
    with stdout_kept_clean():
        from blockwright.attention.benchmark import Setting

        setting = Setting(
            tokens=tokens or 8192,
            data=data,
            heads=heads,
            kv_heads=heads if kv_heads is None else kv_heads,
            seed=seed,
            threads=threads,
            repeats=repeats,
        )
        figures = measure_all(setting) if policy is None else measure(policy, setting, density)
        if page is not None:
            draw_growth(page, figures)
    if as_json or policy is None:
        print_json(figures)
    else:
        chosen = figures.pop("options")
        figures |= figures.pop("setting")
        figures["options"] = ", ".join(f"{name}={value}" for name, value in chosen.items())
        print_figures(figures)


def measure(policy: str, setting: Any, density: float | None) -> dict[str, Any]:
    """One policy."""
    from blockwright.attention.benchmark import bench
    from blockwright.registry import policy_named

    return asdict(bench(policy_named(policy), setting, target=density))


def measure_all(setting: Any) -> dict[str, Any]:
    """Everything that is promised: planted data, growth with the length, and the shipped model."""
    from blockwright.api import set_threads
    from blockwright.attention.figures import all_figures, parts
    from blockwright.machine import describe_machine
    from blockwright.pipeline.visiting import attention_quality

    progress = stderr_progress()
    set_threads(setting.threads)
    with progress.stage("bench attention", parts(), "parts") as stage:
        figures = all_figures(setting, advance=stage.advance)
    figures["machine"] = describe_machine()
    figures["shipped_model"] = attention_quality(str(bundled_model()), progress=progress)
    return figures


def draw_tiles(page: Path, policy: str, model: str, *, block: int, tokens: int) -> None:
    """Write the page and say where it is."""
    from blockwright.report.tile_page import render_tiles

    with stdout_kept_clean():
        from blockwright.pipeline.visiting import visited_tiles

        found = visited_tiles(model, policy, block=block, tokens=tokens, progress=stderr_progress())
    write_text(page, render_tiles(found), "page")
    print_line(f"tiles: {page}")


def write_heads(
    path: Path, policy: str | None, model: str, tokens: int | None, density: float | None
) -> None:
    """Write the policies and say where they are."""
    if policy is None or tokens is None or density is None:
        raise AttentionError(
            "bench attention: --fit-heads needs --policy, --tokens and --density, e.g. --policy"
            " xattention@block=32,stride=8 --tokens 2048 --density 0.35"
        )
    if path.suffix != ".json":
        raise OutputError(
            f"policies {path}: name it .json, for --attention takes it as a file then"
        )
    with stdout_kept_clean():
        from blockwright.pipeline.visiting import head_policies

        found = head_policies(
            model, policy, density=density, tokens=tokens, progress=stderr_progress()
        )
    write_text(path, json.dumps(found, indent=1) + "\n", "policies")
    print_line(f"policies: {path}")


def draw_growth(page: Path, figures: dict[str, Any]) -> None:
    """The plot of what was measured at several lengths, and all tables."""
    from blockwright.machine import processor
    from blockwright.report.attention_tables import attention_tables
    from blockwright.report.growth_page import render_growth

    growth, setting = figures["growth"], figures["setting"]
    subject = f"{setting['heads']} heads, {setting['threads'] or 'all'} threads, {processor()}"
    seconds = {name: found["seconds"] for name, found in growth.items()}
    powers = {name: found["power"] for name, found in growth.items()}
    write_text(page, render_growth(seconds, powers, subject, attention_tables(figures)), "page")


def write_text(path: Path, text: str, what: str) -> None:
    """Raises ``OutputError`` where it cannot be written."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{what} {path} cannot be written: {error.strerror or error}") from None
