"""Puts packed modules into a model that transformers built, before its weights are read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from blockwright.anatomy import find_sites, install_absent, install_narrow, install_placed
from blockwright.errors import FormatError
from blockwright.formats import format_from_spec
from blockwright.formats._linear import FormatLinear
from blockwright.formats._operand import (
    ExpertStack,
    install_experts,
    install_linear,
    install_operand,
    install_table,
)
from blockwright.types import PackedFormat, Site, SiteKind, absent_from_json

Specs = Mapping[str, Mapping[str, Any]]
"""Site id -> format spec."""


def install_sites(model: Any, specs: Specs) -> list[str]:
    """Replace every named site; returns the names of the sentinels that the folder holds beside
    them.

    Raises ``FormatError`` when a site is not in this model or its format is newer.
    """
    sites = {site.id: site for site in find_sites(model)}
    experts: dict[str, list[Site]] = defaultdict(list)
    for site_id, spec in specs.items():
        if site_id not in sites:
            raise FormatError(f"this folder packs {site_id}, which its model does not have")
        site = sites[site_id]
        if site.expert is not None:
            experts[site.parameter].append(site)
        elif site.kind is SiteKind.TABLE:
            _install_table(model, site, spec)
        else:
            module = model.get_submodule(site.module)
            install_linear(model, site.module, _empty(site, spec, module))
    for parameter, packed in experts.items():
        _install_experts(model, parameter, packed, specs)
    return sentinels(model, specs)


def install_parts(model: Any, parts: Specs) -> None:
    """Put stand-ins where parts were dropped, and smaller linears where they are narrower;
    ``parts``: part id -> what the folder says of it.

    Raises ``FormatError`` for a part that is not in this model.
    """
    for part, spec in parts.items():
        format_from_spec(spec)
        try:
            install_absent(model, absent_from_json(spec.get("modules", {})))
            install_narrow(model, spec.get("shapes", {}))
        except AttributeError:
            raise FormatError(
                f"this folder changes {part}, which its model does not have"
            ) from None


def place_heads(model: nn.Module, parts: Specs) -> None:
    """Place what linears of heads with fewer dimensions give and read; once all modules stand."""
    for spec in parts.values():
        install_placed(model, spec.get("placed", {}))


def sentinels(model: nn.Module, specs: Specs) -> list[str]:
    """Names of replaced parameters whose packed tensors have other names (tables, experts)."""
    own = {site_id: spec for site_id, spec in specs.items() if "[" in site_id}
    names = {site_id.partition("[")[0] for site_id in own}
    tables = {
        f"{name}.weight" for name, module in model.named_modules() if hasattr(module, "packed")
    }
    return sorted(names | tables)


def packed_modules(model: nn.Module) -> Iterator[FormatLinear]:
    return (module for module in model.modules() if isinstance(module, FormatLinear))


def _empty(site: Site, spec: Mapping[str, Any], module: nn.Module) -> FormatLinear:
    format = format_from_spec(spec)
    if not isinstance(format, PackedFormat):
        raise FormatError(f"{site.id}: format {format.name} is not a packed one")
    weight = next(module.parameters(recurse=False))
    bias = site.kind is SiteKind.LINEAR and site.bias is not None
    made = format.empty(site.shape, bias=bias, dtype=weight.dtype)
    if not isinstance(made, FormatLinear):
        raise TypeError(f"{format.name} made a {type(made).__name__}")
    return made


def _install_table(model: Any, site: Site, spec: Mapping[str, Any]) -> None:
    """One packed table; a tied head multiplies with the embedding's."""
    owner = model.get_submodule(site.module)
    packed = _empty(site, spec, owner)
    install_table(owner, packed)
    for parameter in site.tied_to:
        install_operand(model.get_submodule(parameter.rpartition(".")[0]), "weight", packed)
    if site.tied_to and hasattr(model, "all_tied_weights_keys"):
        model.all_tied_weights_keys = {
            target: source
            for target, source in model.all_tied_weights_keys.items()
            if {target, source}.isdisjoint({site.parameter, *site.tied_to})
        }


def _install_experts(model: nn.Module, parameter: str, sites: list[Site], specs: Specs) -> None:
    path, _, name = parameter.rpartition(".")
    module = model.get_submodule(path)
    original = getattr(module, name)
    members: list[nn.Module | None] = [None] * original.shape[0]
    for site in sites:
        members[site.expert or 0] = _empty(site, specs[site.id], module)
    stack = ExpertStack(members, original.shape, original.dtype, transposed=sites[0].transposed)
    install_experts(module, name, stack)
