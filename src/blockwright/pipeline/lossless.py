"""``fit --lossless``: every bfloat16 weight coded, every tensor hashed against the original's.

checkpoint -> anatomy -> library -> assemble -> hash -> reload -> report

Nothing is chosen by what it loses, so there is no text, no capture and no plan to solve: a weight
is coded where that makes it smaller, and kept where not.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from blockwright.assemble import Layout, unfinished_folder
from blockwright.errors import ModelError
from blockwright.library import Library, variant_key
from blockwright.library.build import variant_inputs
from blockwright.pipeline.lossless_proof import prove_lossless
from blockwright.pipeline.lossless_report import describe_lossless, lossless_result
from blockwright.pipeline.opening import Opened, default_library, open_original, set_up
from blockwright.pipeline.posing import kept_option, packed_option, problem_of
from blockwright.pipeline.proving import fill_folder, layout_of
from blockwright.pipeline.recipe import compare_with_recipe, model_digest
from blockwright.pipeline.texts import check_text_model
from blockwright.plan import plan_of
from blockwright.progress import Progress
from blockwright.registry import format_named
from blockwright.stream import part_of
from blockwright.types import (
    Candidate,
    DenseSolution,
    FitRequest,
    FitResult,
    LosslessFormat,
    Plan,
    Problem,
    Site,
    VariantRecord,
)

CANDIDATE = Candidate("df11")
USUAL_SHARE = 0.72
"""Of the original's bytes; a model that stays above it is told where they are."""


@dataclass(frozen=True)
class Packed:
    """The library's answer: the record of every site that is stored coded."""

    records: Mapping[str, VariantRecord]
    hits: int
    misses: int


def fit_lossless(request: FitRequest, progress: Progress) -> FitResult:
    """Code what gets smaller by it, and prove that no bit changed.

    The folder gets its name when all is proved.  Killed at any moment, the same call resumes from
    the library.  Raises ``UserError`` for a model that is not bfloat16 or would not shrink.
    """
    began = time.monotonic()
    opened = open_lossless(request, progress)
    notes = compare_with_recipe(opened, model_digest(opened))
    packed = pack_sites(opened)
    problem, plan = plan_of_records(opened, packed.records)
    layout = lossless_layout(opened, packed.records)
    with unfinished_folder(request.out) as folder:
        write_coded(opened, layout, packed.records, plan, folder)
        proof = prove_lossless(opened, layout, folder)
        notes = (*notes, *size_notes(opened, layout, proof.size_bytes))
        result = lossless_result(
            opened, plan, proof, hits=packed.hits, misses=packed.misses, notes=notes, began=began
        )
        describe_lossless(opened, problem, plan, result, folder)
        opened.library.remove_left_behind()
    return result


def open_lossless(request: FitRequest, progress: Progress) -> Opened:
    """Check the request, open the model, and see that it can be coded."""
    set_up(request)
    with progress.stage("open the model", 1, "models") as stage:
        original = open_original(
            request.model, request.revision, request.trust_remote_code, progress
        )
        stage.advance()
    check_text_model(request, original.skeleton)
    opened = Opened(request, progress, original, Library(request.library or default_library()))
    check_stored_dtypes(opened)
    if not codable_sites(opened):
        site = next(site for site in opened.skeleton.sites if site.parameter)
        found = _name(opened.skeleton.parameters[site.parameter].dtype)
        raise ModelError(
            f"{request.model}: lossless codes bfloat16 weights, and {site.parameter} is {found};"
            " give a budget instead (--bits, --size), or the model's bfloat16 version"
        )
    return opened


def check_stored_dtypes(opened: Opened) -> None:
    """Raise ``ModelError`` where the model would load a tensor in another dtype than it is stored
    in: then the weights that it runs with are not those of the files.
    """
    checkpoint, parameters = opened.original.checkpoint, opened.original.parameters
    for name, tensor in opened.skeleton.parameters.items():
        for source in parameters.sources(name):
            if checkpoint.dtype(source) != tensor.dtype:
                raise ModelError(
                    f"{opened.request.model}: lossless keeps every bit, but {source} is stored as"
                    f" {_name(checkpoint.dtype(source))} and config.json loads it as"
                    f" {_name(tensor.dtype)}; save the model once in the dtype that it is used in"
                )


def codable_sites(opened: Opened) -> dict[str, list[Site]]:
    """Parameter -> its sites, where it is bfloat16."""
    found: dict[str, list[Site]] = defaultdict(list)
    for site in opened.skeleton.sites:
        if site.parameter and opened.skeleton.parameters[site.parameter].dtype == torch.bfloat16:
            found[site.parameter].append(site)
    return dict(found)


def pack_sites(opened: Opened) -> Packed:
    """Code what the library lacks, parameter by parameter; keep what got smaller.

    All sites of a parameter (experts) are coded or none.  Raises ``ModelError`` when nothing is.
    """
    codable = codable_sites(opened)
    wanted = {site.id: _inputs(opened, site) for sites in codable.values() for site in sites}
    records: dict[str, VariantRecord] = {}
    misses = 0
    with opened.progress.stage("code the weights", len(codable), "tensors") as stage:
        for parameter, sites in codable.items():
            missing = [s for s in sites if opened.library.lookup(variant_key(wanted[s.id])) is None]
            misses += len(missing)
            if missing:
                _code(opened, parameter, {site: wanted[site.id] for site in missing})
            coded = {site.id: _record(opened, variant_key(wanted[site.id])) for site in sites}
            dense = sum(map(opened.skeleton.dense_bytes, sites))
            if sum(record.stored_bytes for record in coded.values()) < dense:
                records |= coded
            stage.advance()
    if not records:
        raise ModelError(
            f"{opened.request.model} would not shrink without loss: the exponents of its"
            f" {len(wanted)} bfloat16 weights have no common values; give a budget instead (--bits,"
            " --size)"
        )
    return Packed(records, len(wanted) - misses, misses)


def plan_of_records(opened: Opened, records: Mapping[str, VariantRecord]) -> tuple[Problem, Plan]:
    """The plan that the coded sites are, and the problem that it answers."""
    sites = [site for site in opened.skeleton.sites if site.parameter]
    kept = [kept_option(opened, site) for site in sites]
    packed = [site for site in sites if site.id in records]
    coded = {site.id: packed_option(site, records[site.id], 0.0) for site in packed}
    problem = problem_of(opened, [*kept, *coded.values()], statistics="none")
    chosen = [coded.get(option.site, option) for option in kept]
    return problem, plan_of(problem, chosen, budget="lossless", name="lossless")


def lossless_layout(opened: Opened, records: Mapping[str, VariantRecord]) -> Layout:
    """What the folder holds."""
    specs = {site: record.format_spec for site, record in records.items()}
    return layout_of(opened, specs, range(opened.skeleton.num_blocks))


def write_coded(
    opened: Opened,
    layout: Layout,
    records: Mapping[str, VariantRecord],
    plan: Plan,
    folder: Path,
) -> None:
    """Fill the folder; ``ModelError`` when its files are not smaller than the original's."""

    def stored(site: Site) -> dict[str, Tensor]:
        return opened.library.tensors(records[site.id].key)

    size = fill_folder(opened, layout, opened.original.parameters, stored, plan, folder)
    original = opened.original.checkpoint.total_file_bytes
    if size >= original:
        raise ModelError(
            f"{opened.request.model} would not shrink without loss: {original} bytes became {size};"
            " give a budget instead (--bits, --size)"
        )


def size_notes(opened: Opened, layout: Layout, size: int) -> tuple[str, ...]:
    """Where the bytes are, of a model that shrinks less than others do."""
    original = opened.original.checkpoint.total_file_bytes
    if size <= USUAL_SHARE * original:
        return ()
    names = [name for name in layout.parameters() if name not in layout.packed_sites]
    kept = sum(opened.skeleton.parameters[name].nbytes for name in names)
    unused = sum(opened.original.checkpoint.nbytes(name) for name in layout.unused)
    headers = size - layout.total_bytes
    return (
        f"{size / original:.2f} of the original's size, where at most {USUAL_SHARE} is usual: of"
        f" {size} bytes {kept + unused} are tensors kept as they are, {headers} are headers, the"
        " rest are coded weights",
    )


def _code(opened: Opened, parameter: str, wanted: Mapping[Site, Mapping[str, object]]) -> None:
    """Code some sites of one parameter and store them."""
    format, tensor = _format(), opened.original.parameters.load([parameter])[parameter]
    for site, inputs in wanted.items():
        key = variant_key(inputs)
        with opened.library.building(key):
            began = time.monotonic()
            values = part_of(site, tensor).contiguous()
            packed = format.pack(DenseSolution(values_OI=values), None, torch.bfloat16)
            tensors = packed.stored_tensors()
            record = VariantRecord(
                key=key,
                site=site.id,
                candidate=str(CANDIDATE),
                stored_bytes=packed.stored_bytes,
                stored_tensors=len(tensors),
                seconds=time.monotonic() - began,
                format_spec=packed.format.spec(),
                inputs=dict(inputs),
            )
            opened.library.store(record, tensors, torch.zeros(site.shape[0]))


def _inputs(opened: Opened, site: Site) -> dict[str, object]:
    """What decides the coded bytes: the weight and the format, on every machine alike."""
    return variant_inputs(
        source=opened.original.weight_digest(site),
        candidate=CANDIDATE,
        statistics="",
        surroundings={},
    )


def _record(opened: Opened, key: str) -> VariantRecord:
    record = opened.library.lookup(key)
    if record is None:
        raise RuntimeError(f"library entry {key} was not built")
    return record


def _format() -> LosslessFormat:
    format = format_named(CANDIDATE.format)
    if not isinstance(format, LosslessFormat):
        raise TypeError(f"{format.name} is not lossless")
    return format


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
