"""``blockwright methods``: what candidates are made of."""

from __future__ import annotations

import sys

from blockwright.cli import options
from blockwright.cli.claims import Claim, header_section, read_ledger
from blockwright.cli.output import make_table, print_json, print_table, stdout_kept_clean

Entry = dict[str, str]


def methods(*, as_json: options.AsJson = False) -> None:
    """List formats, methods, adapters and training recipes with papers, and whether claims hold."""
    with stdout_kept_clean():
        entries = registered()
    if as_json:
        print_json(entries)
        return
    columns = ("name", "kind", "family", "claim_state", "paper")
    rows = [tuple(entry[column] for column in columns) for entry in entries]
    print_table(make_table([column.replace("_", " ") for column in columns], rows, left=5))


def registered() -> list[Entry]:
    """An entry per file of ``formats``, ``methods``, ``heal/adapters`` and ``training/recipes``."""
    from blockwright import registry

    ledger = read_ledger()
    formats = [
        _entry(stem, "format", registry.format_class(stem), ledger)
        for stem in registry.format_stems()
    ]
    methods = [
        _entry(name, "method", registry.method_class(name), ledger)
        for name in registry.method_names()
    ]
    adapters = [
        _entry(name, "adapter", registry.adapter_class(name), ledger)
        for name in registry.adapter_names()
    ]
    recipes = [
        _entry(name, "recipe", registry.recipe_class(name), ledger)
        for name in registry.recipe_names()
    ]
    return formats + methods + adapters + recipes


def _entry(name: str, kind: str, described: type, ledger: dict[str, Claim]) -> Entry:
    header = sys.modules[described.__module__].__doc__
    claim = ledger.get(name) or Claim(text=header_section(header, "Checked"))
    return {
        "name": name,
        "kind": kind,
        "family": getattr(described, "family", "format"),
        "paper": getattr(described, "paper", "") or header_section(header, "Paper"),
        "claim": claim.text,
        "claim_state": claim.state,
    }
