"""Statistics of real inputs beside those that the original has at the same places.

A compressed prefix gives a site x where the original gives x0.  The cross Gram C = E[x0 x^T] tells
how far the one follows from the other: see ``numerics.matching``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor

from blockwright.capture.observe import BlockObserver
from blockwright.capture.sweep import linear_sites
from blockwright.stream import ActivationFile, Inputs, LinearTap, Stem, Stream
from blockwright.types import Site, Statistic, Statistics


class PairedObserver(BlockObserver):
    """Gathers ``CROSS_GRAM`` beside what is asked for; not for experts, whose tokens differ."""

    def __init__(
        self, needs: Collection[Statistic], originals: Iterator[Mapping[str, Tensor]]
    ) -> None:
        """``originals``: by batch, the original's inputs [T, I] by site id."""
        super().__init__(needs)
        self._originals = originals
        self._here: Mapping[str, Tensor] = {}
        self._cross: dict[int, Tensor] = {}
        """By the identity of an input stream."""
        self._crossed: set[int] = set()

    def start_batch(self) -> None:
        super().start_batch()
        self._crossed.clear()
        self._here = next(self._originals)

    def __call__(self, site: Site, x_TI: Tensor, output: Tensor) -> None:
        super().__call__(site, x_TI, output)
        original_TI, stream = self._here.get(site.id), id(self._stream_of[site.id])
        if original_TI is None or original_TI.shape != x_TI.shape or stream in self._crossed:
            return
        self._crossed.add(stream)
        if stream not in self._cross:
            self._cross[stream] = torch.zeros(x_TI.shape[1], x_TI.shape[1])
        self._cross[stream].addmm_(original_TI.float().T, x_TI.float())

    def statistics(self) -> dict[str, Statistics]:
        found = super().statistics()
        for stream in self.streams:
            cross_II = self._cross.get(id(stream))
            if cross_II is not None:
                C_II = cross_II / max(stream.tokens, 1)
                found |= {site.id: found[site.id].with_cross_gram(C_II) for site in stream.sites}
        return found


@torch.no_grad()
def original_inputs(
    stream: Stream, index: int, stem: Stem, source: ActivationFile, inputs: Inputs
) -> Iterator[dict[str, Tensor]]:
    """By batch, what the linears of an original block multiply, by site id.

    ``source``: the original's hidden states in front of the block.
    """
    block = stream.block(index)
    sites = {site.id: site for site in linear_sites(stream, index) if site.expert is None}
    batches = source.batches(inputs.rows, inputs.batch_size)
    for calls, hidden in zip(stem.calls, batches, strict=True):
        seen = _Seen()
        with LinearTap(stream.parameters(index, block), sites, seen):
            calls[index].run(block, hidden.to(stream.device))
        yield seen.inputs


class _Seen:
    """Keeps the inputs of one forward."""

    def __init__(self) -> None:
        self.inputs: dict[str, Tensor] = {}

    def start_batch(self) -> None:
        """One is made for every forward."""

    def __call__(self, site: Site, x_TI: Tensor, output: Tensor) -> None:
        self.inputs[site.id] = x_TI
