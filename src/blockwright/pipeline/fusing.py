"""Builds fused blocks from the original's hidden states in front of two blocks and behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from blockwright.anatomy import pruned_config
from blockwright.anatomy.changed import With
from blockwright.capture import BlockObserver, inputs_path, linear_sites
from blockwright.errors import ModelError, NumericalError
from blockwright.library import variant_key
from blockwright.library.build import WantedVariant, build_filled, needs_of, variant_inputs
from blockwright.pipeline.curvature import moments_key, site_moments
from blockwright.pipeline.opening import Run, digest_of
from blockwright.pipeline.sweeping import sweep_original
from blockwright.refine import StoredBatches, healing_inputs
from blockwright.registry import resolve
from blockwright.stream import (
    BATCH_TOKENS,
    ActivationFile,
    BlockCall,
    Inputs,
    Stem,
    Stream,
    weight_of,
)
from blockwright.types import (
    FusedBlock,
    FuseFormat,
    FusingMethod,
    LinearMethod,
    NeighbourBlocks,
    Site,
    SiteKind,
    Statistic,
    Statistics,
    VariantRecord,
    packed_name,
    parameter_name,
)


def blocks_to_fuse(run: Run) -> list[Site]:
    """Blocks at which fused variants are wanted."""
    blocks = (site for site in run.skeleton.sites if site.kind is SiteKind.BLOCK)
    return [site for site in blocks if run.candidates_for(site)]


def wanted_fused_variants(run: Run, site: Site) -> list[WantedVariant]:
    """All fused variants of a block, with their keys."""
    found = []
    for candidate in run.candidates_for(site):
        format, _ = resolve(candidate)
        if not isinstance(format, FuseFormat):
            raise TypeError(f"{candidate} fuses no block")
        seen = f"{run.statistics_digest}/{site.id}"
        ranked = Statistic.OUTPUT_GRADIENT in needs_of([candidate])
        both = (site.block or 0, format.lost(site.block or 0))
        inputs = variant_inputs(
            source=digest_of([_digest_of_block(run, index) for index in both]),
            candidate=candidate,
            statistics=f"{seen}/moments-{moments_key(run)}" if ranked else seen,
            surroundings=run.surroundings,
        )
        found.append(WantedVariant(candidate, variant_key(inputs), inputs))
    return found


def _digest_of_block(run: Run, index: int) -> str:
    names = run.skeleton.parameters_of_block(index)
    sources = [source for name in names for source in run.original.parameters.sources(name)]
    return digest_of([run.original.digests[source] for source in sources])


def build_fused(run: Run, site: Site, items: Sequence[WantedVariant]) -> None:
    """Build fused variants of a block and store them; what differs in values is fused once."""
    known: dict[Any, FusedBlock | str] = {}
    for item in items:
        format, (method, *filling) = resolve(item.candidate)
        if not isinstance(format, FuseFormat) or not isinstance(method, FusingMethod):
            raise TypeError(f"{item.candidate} fuses no block")
        pair = _Pair(run, site, format.lost(site.block or 0))
        with run.library.building(item.key):
            if (method, format.behind) not in known:
                known[method, format.behind] = pair.refused or pair.fused(method)
            fused = known[method, format.behind]
            if isinstance(fused, FusedBlock):
                record, tensors = pair.stored(fused, item, filling)
            else:
                record, tensors = _unavailable(site, item, fused), {}
            run.library.store(record, tensors)


@dataclass(frozen=True)
class _Pair:
    """A block that stays, and its neighbour that goes."""

    run: Run
    site: Site
    lost: int

    @property
    def kept(self) -> int:
        return self.site.block or 0

    @property
    def refused(self) -> str:
        """Why they cannot be fused; empty when they can."""
        if any(site.expert is not None for site in self.sites):
            return "its experts keep their weights; blocks with experts are not fused"
        stays = [index for index in range(self.run.skeleton.num_blocks) if index != self.lost]
        trust = self.run.request.trust_remote_code
        try:
            pruned_config(self.run.skeleton.config, stays, trust_remote_code=trust)
        except ModelError as error:
            return str(error)
        return ""

    @property
    def sites(self) -> list[Site]:
        """Linears of the block that stays."""
        return linear_sites(self.stream, self.kept)

    @cached_property
    def stream(self) -> Stream:
        return self.run.stream()

    @cached_property
    def inputs(self) -> Inputs:
        return healing_inputs(self.run.calibration_inputs, BATCH_TOKENS)

    @cached_property
    def stem(self) -> Stem:
        folder = self.run.library.work_folder(f"fuse-{self.run.statistics_digest}")
        return self.stream.run_stem(self.inputs, folder / "stem.bin")

    def hidden(self, index: int) -> ActivationFile:
        """The original's hidden states in front of a block."""
        folder = self.run.library.work_folder(self.run.statistics_digest)
        return ActivationFile(
            inputs_path(folder, index), self.stem.row_shape, self.run.capture_dtype
        )

    def inside(self, name: str, block: int | None = None) -> str:
        """A model's name inside its block."""
        index = self.kept if block is None else block
        return name.removeprefix(f"{self.run.skeleton.block_path}.{index}.")

    def fused(self, method: FusingMethod) -> FusedBlock | str:
        """One block of two, or the reason why there is none."""
        sweep_original(self.run)
        first, last = sorted((self.kept, self.lost))
        block = self.stream.block(self.kept).requires_grad_(False)
        kept = self._weights(block, self.kept)
        lost = self._weights(self.stream.block(self.lost), self.lost)
        stored = self.run.skeleton.parameters
        vectors = {
            self.inside(name): tensor.to(stored[name].dtype)
            for name, tensor in self.stream.parameters(self.kept, block).items()
            if tensor.ndim == 1 and tensor.is_floating_point()
        }
        shapes = {name: W_OI.shape for name, W_OI in kept.items()}
        blocks = NeighbourBlocks(
            kept=kept,
            lost={name: W_OI for name, W_OI in lost.items() if W_OI.shape == shapes.get(name)},
            vectors=vectors,
            run=self._runner(block),
            batches=StoredBatches(
                self.stem, self.hidden(first), self.hidden(last + 1), self.inputs
            ),
            where=self.site.id,
        )
        try:
            return method.fuse(blocks)
        except NumericalError as error:
            return str(error)

    def _weights(self, block: nn.Module, index: int) -> dict[str, Tensor]:
        parameters = self.stream.parameters(index, block)
        sites = linear_sites(self.stream, index)
        return {
            self.inside(site.id, index): weight_of(site, parameters[site.parameter])
            for site in sites
            if site.expert is None
        }

    def _runner(self, block: nn.Module) -> Callable[[Mapping[str, Tensor], Tensor, Any], Tensor]:
        """The block that stays with other weights [O, I] and vectors."""

        def run(values: Mapping[str, Tensor], hidden: Tensor, calls: Sequence[BlockCall]) -> Tensor:
            given = hidden.to(self.stream.device, self.stream.dtype)
            return calls[self.kept].run(With(block, self._as_stored(values)), given)

        return run

    def _as_stored(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameters of the block, of weights [O, I] by their linears and of vectors."""
        found = dict(values)
        for site in self.sites:
            W_OI = found.pop(self.inside(site.id))
            found[self.inside(site.parameter)] = W_OI.T if site.transposed else W_OI
        return found

    def stored(
        self, fused: FusedBlock, item: WantedVariant, filling: Sequence[Any]
    ) -> tuple[VariantRecord, dict[str, Tensor]]:
        """Entry of a fused block: the parameters that changed, or packed ones in their place."""
        parameters = self.run.skeleton.parameters
        path = f"{self.run.skeleton.block_path}.{self.kept}."
        tensors = {parameter_name(path + name): t for name, t in fused.vectors.items()}
        format, _ = resolve(item.candidate)
        record = VariantRecord(
            key=item.key,
            site=self.site.id,
            candidate=str(item.candidate),
            tokens=self.run.texts.calibration.tokens,
            error=fused.loss,
            relative_error=fused.loss,
            format_spec=format.spec(),
            inputs=dict(item.inputs),
        )
        if filling:
            return self._filled(fused, item, record, tensors)
        weights = self._as_stored(fused.weights)
        stored = {path + n: t.to(parameters[path + n].dtype) for n, t in weights.items()}
        tensors |= {parameter_name(name): t.contiguous() for name, t in stored.items()}
        size = sum(tensor.nbytes for tensor in stored.values())
        return replace(record, stored_bytes=size), tensors

    def _filled(
        self,
        fused: FusedBlock,
        item: WantedVariant,
        record: VariantRecord,
        tensors: dict[str, Tensor],
    ) -> tuple[VariantRecord, dict[str, Tensor]]:
        """The fused matrices in the format of the candidate's values, on their real inputs."""
        format, (_, method) = resolve(item.candidate)
        if not isinstance(format, FuseFormat) or format.values is None:
            raise TypeError(f"{item.candidate} fills no values")
        if not isinstance(method, LinearMethod):
            raise TypeError(f"{item.candidate}: {method} fills no values")
        seen, built = self._statistics(fused, item), list[VariantRecord]()
        for site in self.sites:
            if site.id not in seen:
                reason = f"no calibration token reached {site.id}"
                return _unavailable(self.site, item, reason), {}
            W_OI = fused.weights[self.inside(site.id)]
            filled = build_filled(site.id, W_OI, seen[site.id], item, (format.values, method))
            if not filled.record.available:
                return _unavailable(self.site, item, filled.record.unavailable), {}
            built.append(filled.record)
            tensors |= {packed_name(site.id, name): t for name, t in filled.tensors.items()}
        stored = sum(record.stored_bytes for record in built)
        count = sum(record.stored_tensors for record in built)
        return replace(record, stored_bytes=stored, stored_tensors=count), tensors

    def _statistics(self, fused: FusedBlock, item: WantedVariant) -> dict[str, Statistics]:
        """What the linears of the fused block see where it stands."""
        values = self._as_stored({**fused.weights, **fused.vectors})
        block, needs = self.stream.block(self.kept), needs_of([item.candidate])
        with torch.no_grad():
            for name, value in values.items():
                block.get_parameter(name).copy_(value)
        observer = BlockObserver(needs)
        source = self.hidden(min(self.kept, self.lost))
        batches = source.batches(self.inputs.rows, self.inputs.batch_size)
        self.stream.run_block(
            self.kept,
            block,
            self.stem,
            (batch.to(self.stream.dtype) for batch in batches),
            observer=observer,
            watched=self.sites,
        )
        seen = observer.statistics()
        if Statistic.OUTPUT_GRADIENT in needs:
            felt = {site.id: site_moments(self.run, site) for site in self.sites if site.id in seen}
            seen |= {name: replace(seen[name], output_gradient=G_O) for name, G_O in felt.items()}
        return seen


def _unavailable(site: Site, item: WantedVariant, reason: str) -> VariantRecord:
    return VariantRecord(
        key=item.key,
        site=site.id,
        candidate=str(item.candidate),
        unavailable=f"{site.id}: {reason.removeprefix(site.id + ': ')}",
        inputs=dict(item.inputs),
    )
