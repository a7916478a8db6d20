"""Poses the plan's problem: every candidate at every site, with its bytes and its predicted loss.

Linears: the second-order KL, half the sum over outputs of G (how much the loss feels an output)
times the variant's squared error there.  Tables and dropped blocks: measured on calibration rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from blockwright.anatomy import pruned_config
from blockwright.errors import ModelError
from blockwright.library.group import member_errors
from blockwright.pipeline.building import Built
from blockwright.pipeline.curvature import output_moments
from blockwright.pipeline.grouping import groups_of
from blockwright.pipeline.measuring import measure_change
from blockwright.pipeline.opening import Run
from blockwright.pipeline.presets import MEASURED_TOKENS
from blockwright.plan import check_possible
from blockwright.stream import Inputs
from blockwright.types import (
    DROP,
    Choice,
    Group,
    Option,
    Pair,
    Problem,
    Site,
    SiteKind,
    VariantRecord,
)

HEADER_BYTES_PER_TENSOR = 160
"""Upper estimate of a tensor's entry in a safetensors header, its name left out."""
USUAL_TENSORS = 3
"""Tensors of a packed site whose entries are counted beforehand: codes, scales, zero points."""


@dataclass(frozen=True)
class Posed:
    """The problem, and what could not be put into it."""

    problem: Problem
    unavailable: Mapping[str, str]
    """``site candidate`` -> reason."""


def pose_problem(run: Run, built: Built) -> Posed:
    """What the plan is solved from; the library keeps it."""
    skeleton = run.skeleton
    moments = output_moments(run)
    options = [option for site in skeleton.sites if site.parameter for option in _kept(run, site)]
    records = [(site, record) for site, record in _offered(run, built) if record.available]
    tables = [(site, record) for site, record in records if site.kind is SiteKind.TABLE]
    linears = [(site, record) for site, record in records if site.kind is SiteKind.LINEAR]
    options += [_option(run, site, r, _predicted(run, r, moments)) for site, r in linears]
    groups = [option for group in groups_of(run) for option in _grouped(run, group, built, moments)]
    options += groups
    blocks, unavailable = _droppable(run)
    neighbours = _neighbours(blocks)
    changes = len(tables) + len(blocks) + len(neighbours)
    with run.progress.stage("measure tables and blocks", changes) as stage:
        inputs = run.calibration_inputs.first(MEASURED_TOKENS[run.request.preset])
        for site, record in tables:
            choice = Choice(candidate=record.candidate, stored_bytes=0, loss=0.0, key=record.key)
            loss = measure_change(run, {site.id: choice}, inputs)
            options.append(_option(run, site, record, loss))
            stage.advance()
        dropped: dict[str, float] = {}
        offered = {option.site for option in groups}
        for site in blocks:
            dropped[site.id] = _loss_without(run, [site], inputs)
            options += _drop_options(run, site, dropped[site.id], offered)
            stage.advance()
        pairs = []
        for both in neighbours:
            together = _loss_without(run, both, inputs)
            pairs.append(_pair(both, together - sum(dropped[site.id] for site in both)))
            stage.advance()
    replaceable = sum(_dense_bytes(run, site) for site in skeleton.sites if site.parameter)
    problem = Problem(
        model=run.request.model,
        fingerprint=run.original.fingerprint,
        statistics=run.statistics_digest,
        options=tuple(options),
        linear_weights=skeleton.linear_weights,
        fixed_bytes=_fixed_bytes(run, replaceable),
        original_bytes=run.original.checkpoint.total_file_bytes,
        loss_unit=loss_unit(run),
        pairs=tuple(pairs),
    )
    run.library.write_problem(problem)
    return Posed(problem, {**built.unavailable, **unavailable})


def check_budget(run: Run) -> None:
    """Raise ``BudgetError`` for a budget that no plan meets, before anything is built.

    Bytes are those that the formats declare.  With ``drop`` on offer nothing is known beforehand.
    """
    budget, skeleton = run.request.budget, run.skeleton
    if budget is None or DROP in run.candidates:
        return
    sites = [site for site in skeleton.sites if site.parameter]
    options = [option for site in sites for option in _kept(run, site)]
    for site in sites:
        for candidate in run.candidates_for(site):
            stored = run.stored_bytes(candidate, site)
            record = VariantRecord(
                key="", site=site.id, candidate=str(candidate), stored_bytes=stored
            )
            options += [_option(run, site, record, 0.0)] if stored else []
    options += [option for group in groups_of(run) for option in _declared(run, group)]
    replaceable = sum(_dense_bytes(run, site) for site in sites)
    problem = Problem(
        model=run.request.model,
        fingerprint="",
        statistics="",
        options=tuple(options),
        linear_weights=skeleton.linear_weights,
        fixed_bytes=_fixed_bytes(run, replaceable),
        original_bytes=run.original.checkpoint.total_file_bytes,
    )
    check_possible(problem, budget)


def _declared(run: Run, group: Group) -> list[Option]:
    """The options of a group with the bytes that formats declare, its losses unknown."""
    found = []
    for candidate in [] if group.refused else run.candidates_for(group.site):
        stored = [run.stored_bytes(candidate, member) for member in group.members]
        if all(stored):
            record = VariantRecord(
                key="", site=group.site.id, candidate=str(candidate), stored_bytes=sum(stored)
            )
            found.append(_group_option(group, record, 0.0))
    return [_left_to_members(group), *found] if found else []


def loss_unit(run: Run) -> str:
    """Unit of predicted and measured losses."""
    return "nats per token" if run.skeleton.task == "causal-lm" else "squared relative error"


def _offered(run: Run, built: Built) -> list[tuple[Site, VariantRecord]]:
    return [
        (site, built.records[site.id, str(candidate)])
        for site in run.skeleton.sites
        if site.parameter
        for candidate in run.candidates_for(site)
    ]


def _predicted(run: Run, record: VariantRecord, moments: Mapping[str, Tensor]) -> float:
    return second_order(moments.get(record.site), run.library.row_errors(record.key))


def second_order(G_O: Tensor | None, row_errors_O: Tensor) -> float:
    """1/2 sum_o G_oo (D H D^T)_oo; a site no token of the reverse sweep reached costs nothing."""
    return 0.0 if G_O is None else 0.5 * float(G_O.double() @ row_errors_O.double())


def _grouped(run: Run, group: Group, built: Built, moments: Mapping[str, Tensor]) -> list[Option]:
    """Keep a group, which leaves it to its members, or decide it as one."""
    found = []
    for candidate in run.candidates_for(group.site):
        record = built.records[group.site.id, str(candidate)]
        if record.available:
            errors = member_errors(group, run.library.row_errors(record.key))
            loss = sum(second_order(moments.get(member), error_O) for member, error_O in errors)
            found.append(_group_option(group, record, loss))
    named = run.edited is not None
    return [_left_to_members(group), *found] if found or named else []


def _left_to_members(group: Group) -> Option:
    return Option(site=group.site.id, candidate="keep", weights=0, stored_bytes=0, loss=0.0)


def _group_option(group: Group, record: VariantRecord, loss: float) -> Option:
    extra = max(record.stored_tensors // len(group.members) - USUAL_TENSORS, 0)
    return Option(
        site=group.site.id,
        candidate=record.candidate,
        weights=group.site.weights,
        stored_bytes=record.stored_bytes,
        loss=loss,
        key=record.key,
        contains=tuple(member.id for member in group.members),
        other_bytes=sum(header_bytes(member.id, extra) for member in group.members),
    )


def _kept(run: Run, site: Site) -> list[Option]:
    keep = Option(
        site=site.id,
        candidate="keep",
        weights=_weights(site),
        stored_bytes=_dense_bytes(run, site),
        loss=0.0,
        tie=site.tie,
    )
    return [keep]


def _option(run: Run, site: Site, record: VariantRecord, loss: float) -> Option:
    return Option(
        site=site.id,
        candidate=record.candidate,
        weights=_weights(site),
        stored_bytes=record.stored_bytes,
        loss=loss,
        key=record.key,
        tie=site.tie,
        other_bytes=header_bytes(site.id, max(record.stored_tensors - USUAL_TENSORS, 0)),
    )


def header_bytes(name: str, tensors: int) -> int:
    """Upper estimate of the header entries of some tensors of this name."""
    return tensors * (len(name) + HEADER_BYTES_PER_TENSOR)


def _droppable(run: Run) -> tuple[list[Site], dict[str, str]]:
    """Blocks that may be dropped here, and why others may not."""
    if run.edited is not None:
        named = [site for site in run.skeleton.sites if site.id in run.edited.choices]
        return [site for site in named if site.kind is SiteKind.BLOCK], {}
    if DROP not in run.candidates:
        return [], {}
    blocks = [site for site in run.skeleton.sites if site.kind is SiteKind.BLOCK]
    trust = run.request.trust_remote_code
    possible, unavailable = [], {}
    for site in blocks:
        kept = [index for index in range(run.skeleton.num_blocks) if index != site.block]
        try:
            pruned_config(run.skeleton.config, kept, trust_remote_code=trust)
            possible.append(site)
        except ModelError as error:
            unavailable[f"{site.id} drop"] = str(error)
    return possible, unavailable


def _neighbours(blocks: Sequence[Site]) -> list[tuple[Site, Site]]:
    """Neighbouring blocks that may both be dropped."""
    at = {site.block: site for site in blocks}
    return [
        (site, at[place + 1]) for place, site in at.items() if place is not None and place + 1 in at
    ]


def _loss_without(run: Run, blocks: Sequence[Site], inputs: Inputs) -> float:
    """The measured loss of dropping some blocks."""
    drop = Choice(candidate=str(DROP), stored_bytes=0, loss=0.0)
    return measure_change(run, {site.id: drop for site in blocks}, inputs)


def _pair(blocks: tuple[Site, Site], loss: float) -> Pair:
    """What dropping two neighbours costs beside what each costs: scattered drops look cheap."""
    first, second = blocks
    return Pair(sites=(first.id, second.id), candidates=(str(DROP), str(DROP)), loss=loss)


def _drop_options(run: Run, site: Site, loss: float, grouped: Collection[str]) -> list[Option]:
    """Keep or drop a block; dropped, its norms go as well.  ``grouped``: groups on offer."""
    if site.block is None:
        raise ValueError(f"{site.id} is no block")
    inner = [s for s in run.skeleton.block_sites(site.block) if s.parameter]
    groups = sorted(name for name in grouped if name.startswith(f"{site.id}."))
    names = run.skeleton.parameters_of_block(site.block)
    whole = sum(run.skeleton.parameters[name].nbytes for name in names)
    drop = Option(
        site=site.id,
        candidate=str(DROP),
        weights=0,
        stored_bytes=0,
        loss=loss,
        contains=(*(s.id for s in inner), *groups),
        other_bytes=sum(_dense_bytes(run, s) for s in inner) - whole,
    )
    keep = Option(site=site.id, candidate="keep", weights=0, stored_bytes=0, loss=0.0)
    return [keep, drop]


def _weights(site: Site) -> int:
    """Weights that count for bits per weight."""
    return site.weights if site.kind is SiteKind.LINEAR else 0


def _dense_bytes(run: Run, site: Site) -> int:
    dtype = run.skeleton.parameters[site.parameter].dtype
    return site.shape[0] * site.shape[1] * dtype.itemsize


def _fixed_bytes(run: Run, replaceable: int) -> int:
    """Everything that is no site, and an upper estimate of the headers."""
    tied = set(run.skeleton.model.all_tied_weights_keys)
    tensors = {n: t for n, t in run.skeleton.parameters.items() if n not in tied}
    unused = run.original.parameters.unused
    stored = sum(tensor.nbytes for tensor in tensors.values())
    stored += sum(run.original.checkpoint.nbytes(name) for name in unused)
    headers = sum(header_bytes(name, 1) for name in (*tensors, *unused))
    headers += sum(header_bytes(site.id, USUAL_TENSORS) for site in run.skeleton.sites)
    return stored - replaceable + headers
