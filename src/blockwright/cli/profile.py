"""``blockwright profile``: time a model's products on this machine, once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blockwright.cli import options
from blockwright.cli.output import (
    make_table,
    print_json,
    print_line,
    print_table,
    stdout_kept_clean,
)
from blockwright.errors import OutputError
from blockwright.progress import stderr_progress
from blockwright.types import DEFAULT_CONTEXT, Phase, Profile, Workload

SHOWN = 20
"""Works that are printed."""


def profile(
    model: options.Model,
    *,
    out: Annotated[Path, typer.Option(help="Profile file to write.")],
    candidates: options.Candidates = None,
    attention: options.AttentionPolicies = None,
    phase: options.PhaseOption = Phase.DECODE,
    batch: options.Batch = 1,
    context: options.Context = DEFAULT_CONTEXT,
    threads: options.Threads = None,
    device: options.Device = "cpu",
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
) -> None:
    """Time MODEL's products in every format on this machine, for `fit --speedup --profile`.

    Only the model's shapes matter.  Without --candidates the formats of all presets are timed.
    """
    with stdout_kept_clean():
        from blockwright.api import profile_model

        measured = profile_model(
            model,
            workload=Workload(phase=phase, batch=batch, context=context),
            candidates=options.read_candidates(candidates),
            attention=options.read_candidates(attention),
            threads=threads,
            device=device,
            revision=revision,
            trust_remote_code=trust_remote_code,
            progress=stderr_progress(),
        )
        write_profile(measured, out)
    if as_json:
        print_json(measured.to_json() | {"digest": measured.digest, "profile_path": str(out)})
        return
    print_profile(measured)
    print_line(f"profile: {out}")


def write_profile(measured: Profile, out: Path) -> None:
    """Write the profile file, making its folder."""
    try:
        measured.write(out)
    except OSError as error:
        raise OutputError(f"profile {out} cannot be written: {error.strerror or error}") from None


def print_profile(measured: Profile) -> None:
    """The slowest works, and everything else of a forward."""
    works = sorted(measured.work_ns.items(), key=lambda item: -item[1])
    rows = [(name, f"{ns / 1e3:.1f}") for name, ns in works[:SHOWN]]
    beside = measured.outside_ns + sum(measured.blocks_ns.values())
    rows.append(("all that is no product, whole forward", f"{beside / 1e3:.1f}"))
    print_table(make_table((f"{measured.workload}", "microseconds"), rows))
    left = len(works) - SHOWN
    if left > 0:
        print_line(f"and {left} more; {len(measured.untimed)} without a packed kernel here")
