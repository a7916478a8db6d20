"""The parts of a run's model: found on one small batch, kept in the library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from blockwright.anatomy import FoundPart, find_parts
from blockwright.pipeline.grouping import groups_of
from blockwright.pipeline.opening import Run, by_id, digest_of
from blockwright.pipeline.seeing import first_of_each, one_batch, pattern_of
from blockwright.types import (
    DROP,
    Channels,
    HeadDims,
    Part,
    PartRole,
    Plan,
    Site,
    SiteKind,
    absent_from_json,
    absent_to_json,
    part_site,
)

SEARCH_VERSION = 2
"""Raised whenever other parts may be found: part of their key."""


def parts_of(run: Run) -> tuple[Part, ...]:
    """Parts of all blocks, block by block, or those that an edited plan names; none are looked for
    unless they may be dropped or the plan may name one.
    """
    if not _concern(run):
        return ()
    found = _found_parts(run)
    parts = [
        _part(run, index, item)
        for index in range(run.skeleton.num_blocks)
        for item in found[pattern_of(run.skeleton, index)]
    ]
    if run.edited is None:
        return tuple(parts)
    return tuple(part for part in parts if part.site.id in run.edited.choices)


def dropped_parts(run: Run, plan: Plan) -> tuple[Part, ...]:
    """Parts that a plan drops."""
    known = by_id(run.skeleton)
    drop = str(DROP)
    dropped = {s for s, c in plan.choices.items() if c.candidate == drop and s not in known}
    if not dropped:
        return ()
    return tuple(part for part in parts_of(run) if part.site.id in dropped)


def without_parts(run: Run) -> dict[str, str]:
    """``site candidate`` -> why parts of a block are not on offer."""
    if run.edited is not None or not _concern(run):
        return {}
    found = _found_parts(run)
    reason = "its attention and its FFN cannot be told apart: they are no parts"
    path, blocks = run.skeleton.block_path, range(run.skeleton.num_blocks)
    whole = [f"{path}.{i}" for i in blocks if not found[pattern_of(run.skeleton, i)]]
    reasons = {f"{block} parts": reason for block in whole}
    if run.drops_parts:
        reasons |= {f"{p.site.id} {DROP}": p.refused for p in parts_of(run) if p.refused}
    return reasons


def _concern(run: Run) -> bool:
    if run.edited is None:
        return run.offers_parts
    known = by_id(run.skeleton)
    return any(site not in known for site in run.edited.choices)


def _found_parts(run: Run) -> dict[tuple[str, ...], list[FoundPart]]:
    """Parts by the inner names of a block's linears."""
    key = "parts-" + digest_of([SEARCH_VERSION, run.original.fingerprint, run.surroundings])
    known = run.library.result(key)
    if known is None:
        found = {"blocks": _search(run)}
        run.library.store_result(key, found)
        known = run.library.result(key) or found  # read back: files sort names
    return {tuple(names): [_read(item) for item in parts] for names, parts in known["blocks"]}


def _search(run: Run) -> list[Any]:
    """Run the first block of every set of inner names without some of its linears."""
    first = first_of_each(run.skeleton)
    stem, hidden = one_batch(run)
    stream = run.stream()
    with run.progress.stage("find parts", len(first), "blocks") as stage:
        found = []
        for pattern, index in first.items():
            linears = [s for s in run.skeleton.block_sites(index) if s.kind is SiteKind.LINEAR]
            call, prefix = stem.calls[0][index], f"{run.skeleton.block_path}.{index}."
            parts = find_parts(stream.block(index), prefix, linears, call.run, hidden)
            found.append([pattern, [_written(part) for part in parts]])
            stage.advance()
    return found


def _written(part: FoundPart) -> dict[str, Any]:
    channels = None if part.channels is None else asdict(part.channels)
    heads = None if part.heads is None else asdict(part.heads)
    found = {**vars(part), "absent": absent_to_json(part.absent)}
    return {**found, "channels": channels, "heads": heads}


def _read(item: Mapping[str, Any]) -> FoundPart:
    return FoundPart(
        role=PartRole(item["role"]),
        members=tuple(item["members"]),
        absent=absent_from_json(item["absent"]),
        refused=str(item["refused"]),
        writes_all=bool(item["writes_all"]),
        channels=_read_channels(item["channels"]),
        not_narrower=str(item["not_narrower"]),
        heads=_read_heads(item["heads"]),
        no_dims=str(item["no_dims"]),
    )


def _read_heads(item: Mapping[str, Any] | None) -> HeadDims | None:
    if item is None:
        return None
    return HeadDims(**{**item, "units": tuple(map(tuple, item["units"]))})


def _read_channels(item: Mapping[str, Any] | None) -> Channels | None:
    if item is None:
        return None
    readers = {name: (int(order[0]), bool(order[1])) for name, order in item["readers"].items()}
    return Channels(
        writer=item["writer"],
        width=int(item["width"]),
        readers=readers,
        columns=int(item["columns"]),
    )


def _part(run: Run, index: int, found: FoundPart) -> Part:
    """A part of a block under the names of the model."""
    path = f"{run.skeleton.block_path}.{index}"
    sites = {site.id: site for site in run.skeleton.block_sites(index)}
    members = tuple(sites[f"{path}.{name}"] for name in found.members)
    absent = tuple(replace(m, path=f"{path}.{m.path}") for m in found.absent)
    names = [module.path.removeprefix(f"{path}.") for module in found.absent]
    return Part(
        site=part_site(index, path, names or found.members, sum(s.weights for s in members)),
        role=found.role,
        members=members,
        parameters=_inside(run, index, [module.path for module in absent]),
        absent=absent,
        writes_all=found.writes_all,
        refused=found.refused or _shared_group(run, members),
        channels=_in_model(found.channels, path),
        not_narrower=found.not_narrower or _shared_group(run, members),
        heads=_heads_in_model(found.heads, path),
        no_dims=found.no_dims or _shared_group(run, members),
    )


def _heads_in_model(heads: HeadDims | None, path: str) -> HeadDims | None:
    """Linears under the names of the model."""
    if heads is None:
        return None
    return replace(
        heads,
        query=f"{path}.{heads.query}",
        key=f"{path}.{heads.key}",
        value=f"{path}.{heads.value}",
        output=f"{path}.{heads.output}",
    )


def _in_model(channels: Channels | None, path: str) -> Channels | None:
    """Channels under the names of the model."""
    if channels is None:
        return None
    readers = {f"{path}.{name}": order for name, order in channels.readers.items()}
    return replace(channels, writer=f"{path}.{channels.writer}", readers=readers)


def _inside(run: Run, index: int, modules: list[str]) -> tuple[str, ...]:
    """Parameters and persistent buffers of some modules of a block."""
    names = run.skeleton.parameters_of_block(index)
    return tuple(n for n in names if any(n.startswith(f"{module}.") for module in modules))


def _shared_group(run: Run, members: tuple[Site, ...]) -> str:
    """Why a group on offer stands against dropping; empty where none reaches beyond the part."""
    own = {site.id for site in members}
    for group in groups_of(run):
        inside = own.intersection(site.id for site in group.members)
        if not group.refused and inside and len(inside) < len(group.members):
            return f"its linears are scaled with others by one candidate ({group.site.id})"
    return ""
