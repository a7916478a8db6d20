"""The groups of a run's model: seen on one small batch, kept in the library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from blockwright.capture import FoundGroup, find_groups
from blockwright.library import variant_key
from blockwright.library.build import WantedVariant
from blockwright.library.group import GroupTensors, group_inputs
from blockwright.pipeline.opening import Run, by_id, digest_of
from blockwright.pipeline.seeing import first_of_each, one_batch, pattern_of
from blockwright.registry import is_scaled
from blockwright.stream import weight_of
from blockwright.types import Candidate, Group, Site, group_site

SEARCH_VERSION = 1
"""Raised whenever other groups may be found: part of their key."""


def groups_of(run: Run) -> tuple[Group, ...]:
    """Groups of all blocks, block by block, or those that an edited plan names; none are looked for
    unless a candidate scales one or the plan may name one.
    """
    if not _concern(run):
        return ()
    path = run.skeleton.block_path
    found = _found_groups(run)
    groups = []
    for index in range(run.skeleton.num_blocks):
        sites = {site.id: site for site in run.skeleton.block_sites(index)}
        for item in found[pattern_of(run.skeleton, index)]:
            members = tuple(sites[f"{path}.{index}.{name}"] for name in item.members)
            groups.append(_group(index, f"{path}.{index}", item, members))
    if run.edited is None:
        return tuple(groups)
    return tuple(group for group in groups if group.site.id in run.edited.choices)


def _concern(run: Run) -> bool:
    if run.edited is None:
        return any(map(is_scaled, run.candidates))
    known = by_id(run.skeleton)
    return any(site not in known for site in run.edited.choices)


def wanted_group_variants(run: Run, group: Group) -> list[WantedVariant]:
    """All variants of a group on the original's inputs, with their keys."""
    seen = f"{run.statistics_digest}/{group.site.id}"
    return [
        wanted_group_variant(run, group, candidate, seen)
        for candidate in run.candidates_for(group.site)
    ]


def wanted_group_variant(run: Run, group: Group, candidate: Candidate, seen: str) -> WantedVariant:
    """One variant; ``seen``: digest of what the members saw."""
    names = [name for p in group.parameters for name in run.original.parameters.sources(p)]
    source = [run.original.weight_digest(member) for member in group.members]
    source += [run.original.digests[name] for name in names]
    inputs = group_inputs(
        group=group,
        source=digest_of(source),
        candidate=candidate,
        statistics=seen,
        surroundings=run.surroundings,
    )
    return WantedVariant(candidate, variant_key(inputs), inputs)


def group_tensors(run: Run, group: Group) -> GroupTensors:
    """Weights and parameters of a group as the original has them."""
    names = [*(member.parameter for member in group.members), *group.parameters]
    tensors: Mapping[str, Tensor] = run.original.parameters.load(names)
    return GroupTensors(
        [weight_of(member, tensors[member.parameter]) for member in group.members],
        [tensors[name] for name in group.parameters],
    )


def _found_groups(run: Run) -> dict[tuple[str, ...], list[FoundGroup]]:
    """Groups by the inner names of a block's linears."""
    key = "groups-" + digest_of([SEARCH_VERSION, run.original.fingerprint, run.surroundings])
    known = run.library.result(key)
    if known is None:
        known = {"blocks": _search(run)}
        run.library.store_result(key, known)
    return {tuple(names): [_read(item) for item in groups] for names, groups in known["blocks"]}


def _search(run: Run) -> list[Any]:
    """Run the first block of every set of inner names on the first calibration tokens."""
    first = first_of_each(run.skeleton)
    stem, hidden = one_batch(run)
    stream = run.stream()
    with run.progress.stage("find groups", len(first), "blocks") as stage:
        found = []
        for pattern, index in first.items():
            groups = find_groups(stream, index, stem, hidden)
            found.append([pattern, [vars(group) for group in groups]])
            stage.advance()
    return found


def _read(item: Mapping[str, Sequence[Any]]) -> FoundGroup:
    return FoundGroup(
        members=tuple(item["members"]),
        parameters=tuple(item["parameters"]),
        offsets=tuple(item["offsets"]),
        refused=str(item["refused"]),
    )


def _group(index: int, path: str, found: FoundGroup, members: tuple[Site, ...]) -> Group:
    weights = sum(member.weights for member in members)
    return Group(
        site=group_site(index, path, found.members, weights),
        members=members,
        parameters=tuple(f"{path}.{name}" for name in found.parameters),
        offsets=found.offsets,
        refused=found.refused,
    )
