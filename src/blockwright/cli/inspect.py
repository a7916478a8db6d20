"""``blockwright inspect``: the blocks and sites of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from blockwright.cli import options
from blockwright.cli.output import (
    make_table,
    print_figures,
    print_json,
    print_line,
    print_table,
    stdout_kept_clean,
)


def inspect(
    model: options.Model,
    *,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
) -> None:
    """Show what MODEL is made of: blocks, sites, and the bytes of stem and head."""
    with stdout_kept_clean():
        from blockwright.api import inspect_model

        found = inspect_model(model, revision=revision, trust_remote_code=trust_remote_code)
    if as_json:
        print_json(found)
        return
    print_figures({name: value for name, value in found.items() if not isinstance(value, list)})
    print_line("")
    print_sites(found["sites"])


def print_sites(sites: Sequence[Mapping[str, Any]]) -> None:
    """Id, kind, shape and parameter count of every site."""
    rows = [
        (site["id"], site["kind"], " x ".join(map(str, site["shape"])), f"{site['parameters']:,}")
        for site in sites
    ]
    print_table(make_table(("site", "kind", "shape", "parameters"), rows, left=2))
