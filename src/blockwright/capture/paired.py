"""Statistics of real inputs beside those that the original has at the same places.

A compressed prefix gives a site x where the original gives x0.  The cross Gram C = E[x0 x^T] tells
how far the one follows from the other: see ``numerics.matching``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from blockwright.capture.observe import BlockObserver
from blockwright.stream import ActivationFile, Inputs, Stem, Stream
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
    stream: Stream, sites: Sequence[Site], stem: Stem, source: ActivationFile, inputs: Inputs
) -> Iterator[dict[str, Tensor]]:
    """By batch, what some linears of an original block multiply, by site id.

    ``sites``: of one block, no experts; ``source``: the original's hidden states in front of it.
    """
    index = sites[0].block
    if index is None:
        raise ValueError(f"{sites[0].id} is in no block")
    block, seen = stream.block(index), _Seen()
    for calls, hidden in zip(
        stem.calls, source.batches(inputs.rows, inputs.batch_size), strict=True
    ):
        one = replace(stem, calls=[calls])
        stream.run_block(index, block, one, iter([hidden]), observer=seen, watched=sites)
        yield seen.inputs


class _Seen:
    """Keeps the inputs of the last forward."""

    def __init__(self) -> None:
        self.inputs: dict[str, Tensor] = {}

    def start_batch(self) -> None:
        self.inputs = {}

    def __call__(self, site: Site, x_TI: Tensor, output: Tensor) -> None:
        self.inputs[site.id] = x_TI
