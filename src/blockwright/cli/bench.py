"""``blockwright bench``: speed and faithfulness of single parts, measured on this machine."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from blockwright.cli import options
from blockwright.cli.output import print_figures, print_json, stdout_kept_clean

app = typer.Typer(help="Measure single parts on this machine.", no_args_is_help=True)


@app.callback()
def root() -> None:
    """Measure single parts on this machine."""


@app.command("attention")
def attention(
    *,
    policy: Annotated[
        str, typer.Option(help="An attention policy, e.g. xattention or moba@block=64,keep=8.")
    ],
    tokens: Annotated[int, typer.Option(min=1, help="Queries and keys.")],
    density: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Move the policy's budget to this share of tiles."),
    ] = None,
    data: Annotated[str, typer.Option(help="What is planted in queries and keys.")] = "mixed",
    heads: Annotated[int, typer.Option(min=1, help="Query heads, 64 wide.")] = 4,
    kv_heads: Annotated[int | None, typer.Option(min=1, help="Key/value heads.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs; the median counts.")] = 5,
    seed: options.Seed = 0,
    threads: options.Threads = None,
    as_json: options.AsJson = False,
) -> None:
    """Density, recall, error and time of a policy beside fused dense attention, in bfloat16."""
    with stdout_kept_clean():
        from blockwright.attention.benchmark import Setting, bench
        from blockwright.registry import policy_named

        setting = Setting(
            tokens=tokens,
            data=data,
            heads=heads,
            kv_heads=heads if kv_heads is None else kv_heads,
            seed=seed,
            threads=threads,
            repeats=repeats,
        )
        figures = asdict(bench(policy_named(policy), setting, target=density))
    if as_json:
        print_json(figures)
    else:
        chosen = figures.pop("options")
        figures |= figures.pop("setting")
        figures["options"] = ", ".join(f"{name}={value}" for name, value in chosen.items())
        print_figures(figures)
