"""What was unavailable, grouped by its reason."""

from __future__ import annotations

from collections.abc import Mapping

from blockwright.types.report import UnavailableGroup

NAMED_SITES = 24
"""Sites that a group names; of experts there can be thousands."""


def group_reasons(unavailable: Mapping[str, str]) -> tuple[UnavailableGroup, ...]:
    """Groups of ``site candidate -> reason``, the largest first; sites in front of a reason go."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for variant, reason in unavailable.items():
        site, _, candidate = variant.rpartition(" ")
        groups.setdefault(reason.removeprefix(f"{site}: "), []).append((site, candidate))
    found = [_group(reason, variants) for reason, variants in groups.items()]
    return tuple(sorted(found, key=lambda group: (-group.variants, group.reason)))


def _group(reason: str, variants: list[tuple[str, str]]) -> UnavailableGroup:
    sites = list(dict.fromkeys(site for site, _ in variants))
    return UnavailableGroup(
        reason=reason,
        candidates=tuple(dict.fromkeys(candidate for _, candidate in variants)),
        sites=tuple(sites[:NAMED_SITES]),
        variants=len(variants),
        site_count=len(sites),
    )
