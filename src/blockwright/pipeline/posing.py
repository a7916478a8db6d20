"""Poses the plan's problem: every candidate at every site, with its bytes and its predicted loss.

Linears: the second-order KL, half the sum over outputs of G (how much the loss feels an output)
times the variant's squared error there.  Tables, dropped blocks and parts: measured on calibration
rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from blockwright.evaluate import FinalHidden
from blockwright.library.group import member_errors
from blockwright.pipeline.attending import (
    PolicyOffer,
    declared_policies,
    policies_on_offer,
    policy_options,
    unavailable_policies,
)
from blockwright.pipeline.building import Built
from blockwright.pipeline.caching import (
    CacheOffer,
    cache_options,
    caches_on_offer,
    declared_caches,
    unavailable_caches,
)
from blockwright.pipeline.curvature import output_moments
from blockwright.pipeline.dropping import (
    Droppable,
    declared_narrower,
    droppable,
    left_to_parts,
    measure_drops,
    narrow_option,
)
from blockwright.pipeline.fuse_options import MEASURED_FUSED, FusedRecord, measure_fused
from blockwright.pipeline.fusing import blocks_to_fuse
from blockwright.pipeline.grouping import groups_of
from blockwright.pipeline.measuring import measure_change, original_of_calibration
from blockwright.pipeline.narrowing import parts_to_narrow, widths_for
from blockwright.pipeline.opening import Opened, Run
from blockwright.pipeline.parting import parts_of
from blockwright.pipeline.presets import MEASURED_TOKENS
from blockwright.types import (
    DROP,
    DROP_RUN,
    Choice,
    Group,
    Option,
    Pair,
    Part,
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
    """What the plan is solved from."""
    moments = output_moments(run)
    options = [kept_option(run, site) for site in run.skeleton.sites if site.parameter]
    records = [(site, record) for site, record in _offered(run, built) if record.available]
    tables = [(site, record) for site, record in records if site.kind is SiteKind.TABLE]
    linears = [(site, record) for site, record in records if site.kind is SiteKind.LINEAR]
    options += [packed_option(site, r, _predicted(run, r, moments)) for site, r in linears]
    groups = [option for group in groups_of(run) for option in _grouped(run, group, built, moments)]
    drops, caches, policies = droppable(run), caches_on_offer(run), policies_on_offer(run)
    narrower = [
        (part, record)
        for part in parts_to_narrow(run)
        for record in (built.records[part.site.id, str(c)] for c in widths_for(run, part))
        if record.available
    ]
    fused = [
        (site, record)
        for site in blocks_to_fuse(run)
        for record in (built.records[site.id, str(c)] for c in run.candidates_for(site))
        if record.available
    ]
    states: list[CacheOffer | PolicyOffer] = [*caches, *policies]
    grouped = {option.site for option in groups}
    measured, pairs = _measured(run, tables, drops, narrower, fused, states, grouped)
    problem = problem_of(run, [*options, *groups, *measured], run.statistics_digest)
    blocks = tuple(site.id for site in run.skeleton.sites if site.kind is SiteKind.BLOCK)
    problem = replace(
        problem,
        loss_unit=loss_unit(run),
        pairs=tuple(pairs),
        blocks=blocks,
        one_run=DROP_RUN in run.candidates,
    )
    unavailable = drops.unavailable | unavailable_caches(run) | unavailable_policies(run)
    return Posed(problem, {**built.unavailable, **unavailable})


def _measured(
    run: Run,
    tables: Sequence[tuple[Site, VariantRecord]],
    drops: Droppable,
    narrower: Sequence[tuple[Part, VariantRecord]],
    fused: Sequence[FusedRecord],
    states: Sequence[CacheOffer | PolicyOffer],
    grouped: Collection[str],
) -> tuple[list[Option], list[Pair]]:
    """Tables, dropped blocks and parts, narrower parts, fused blocks, KV caches and attention
    policies, each by what it costs alone; neighbours by what both cost.
    """
    offered = parts_of(run) if run.edited else (*drops.parts, *(part for part, _ in narrower))
    parts = {part.site.id: part.site for part in offered}
    options = [left_to_parts(site) for site in parts.values()]
    changes = len(tables) + drops.changes + len(narrower) + sum(map(_changes_of, states))
    changes += MEASURED_FUSED * len(fused)
    if not changes:
        return options, []
    held = {*grouped, *parts, *(offer.site for offer in states)}
    inputs = run.calibration_inputs.first(MEASURED_TOKENS[run.request.preset])
    original = original_of_calibration(run, inputs)
    with run.progress.stage("measure tables, blocks and caches", changes) as stage:
        for site, record in tables:
            choice = Choice(candidate=record.candidate, stored_bytes=0, loss=0.0, key=record.key)
            loss = measure_change(run, {site.id: choice}, original)
            options.append(packed_option(site, record, loss))
            stage.advance()
        dropped, pairs = measure_drops(run, drops, original, held, stage.advance)
        options += dropped
        alone = {option.site: option.loss for option in dropped if option.candidate == str(DROP)}
        found, together = measure_fused(run, fused, alone, original, held, stage.advance)
        options, pairs = [*options, *found], [*pairs, *together]
        for part, record in narrower:
            option = narrow_option(run, part, record, held)
            choice = Choice(candidate=record.candidate, stored_bytes=0, loss=0.0, key=record.key)
            loss = measure_change(run, {part.site.id: choice}, original)
            options.append(replace(option, loss=loss))
            stage.advance()
        for offer in states:
            options += _options_of(run, offer, original)
            stage.advance(_changes_of(offer))
    return options, pairs


def _changes_of(offer: CacheOffer | PolicyOffer) -> int:
    """Models that are measured for an offer."""
    return len(offer.formats if isinstance(offer, CacheOffer) else offer.policies)


def _options_of(run: Run, offer: CacheOffer | PolicyOffer, original: FinalHidden) -> list[Option]:
    if isinstance(offer, CacheOffer):
        return cache_options(run, offer, original)
    return policy_options(run, offer, original)


def problem_of(run: Opened, options: Sequence[Option], statistics: str) -> Problem:
    """The options with what the model has beside them."""
    skeleton = run.skeleton
    replaceable = sum(skeleton.dense_bytes(site) for site in skeleton.sites if site.parameter)
    return Problem(
        model=run.request.model,
        fingerprint=run.original.fingerprint,
        statistics=statistics,
        options=tuple(options),
        linear_weights=skeleton.linear_weights,
        fixed_bytes=_fixed_bytes(run, replaceable),
        original_bytes=run.original.checkpoint.total_file_bytes,
    )


def declared_problem(run: Run) -> Problem:
    """All candidates with the bytes that their formats declare, before anything is built; losses
    are unknown, and dropped blocks left out.
    """
    sites = [site for site in run.skeleton.sites if site.parameter]
    options = [kept_option(run, site) for site in sites]
    for site in sites:
        for candidate in run.candidates_for(site):
            stored = run.least_bytes(candidate, site)
            record = VariantRecord(
                key="", site=site.id, candidate=str(candidate), stored_bytes=stored
            )
            options += [packed_option(site, record, 0.0)] if stored else []
    options += [option for group in groups_of(run) for option in _declared(run, group)]
    for part in parts_to_narrow(run):
        options += declared_narrower(run, part, {o.site for o in options})
    options += [option for offer in caches_on_offer(run) for option in declared_caches(offer)]
    options += [option for offer in policies_on_offer(run) for option in declared_policies(offer)]
    return problem_of(run, options, run.statistics_digest)


def _declared(run: Run, group: Group) -> list[Option]:
    """The options of a group with the bytes that formats declare, its losses unknown."""
    found = []
    for candidate in [] if group.refused else run.candidates_for(group.site):
        stored = [run.least_bytes(candidate, member) for member in group.members]
        if all(stored):
            record = VariantRecord(
                key="", site=group.site.id, candidate=str(candidate), stored_bytes=sum(stored)
            )
            found.append(_group_option(group, record, 0.0))
    return [left_to_parts(group.site), *found] if found else []


def loss_unit(run: Opened) -> str:
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
    return [left_to_parts(group.site), *found] if found or named else []


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


def kept_option(run: Opened, site: Site) -> Option:
    return Option(
        site=site.id,
        candidate="keep",
        weights=_weights(site),
        stored_bytes=run.skeleton.dense_bytes(site),
        loss=0.0,
        tie=site.tie,
    )


def packed_option(site: Site, record: VariantRecord, loss: float) -> Option:
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


def _weights(site: Site) -> int:
    """Weights that count for bits per weight."""
    return site.weights if site.kind is SiteKind.LINEAR else 0


def _fixed_bytes(run: Opened, replaceable: int) -> int:
    """Everything that is no site, and an upper estimate of the headers."""
    tied = set(run.skeleton.model.all_tied_weights_keys)
    tensors = {n: t for n, t in run.skeleton.parameters.items() if n not in tied}
    unused = run.original.parameters.unused
    stored = sum(tensor.nbytes for tensor in tensors.values())
    stored += sum(run.original.checkpoint.nbytes(name) for name in unused)
    headers = sum(header_bytes(name, 1) for name in (*tensors, *unused))
    headers += sum(header_bytes(site.id, USUAL_TENSORS) for site in run.skeleton.sites)
    return stored - replaceable + headers
