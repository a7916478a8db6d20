"""Gathers the statistics of a block's sites while the block runs.

Sites that read the same tensor (q/k/v, gate/up) share one set of accumulators: found by watching,
per forward, which inputs are the same memory.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from blockwright.capture.accumulators import Accumulator, accumulators_for
from blockwright.types import Site, Statistic, Statistics


@dataclass
class InputStream:
    """One distinct input of a block and the sites that read it, in order of execution."""

    sites: list[Site] = field(default_factory=list)
    accumulators: list[Accumulator] = field(default_factory=list)
    tokens: int = 0


class BlockObserver:
    """Observer for a ``LinearTap``; call ``start_batch`` before every forward."""

    def __init__(self, needs: Collection[Statistic]) -> None:
        self._needs = needs
        self._stream_of: dict[str, InputStream] = {}
        self._of_input: dict[tuple[int, ...], InputStream] = {}
        self._alive: list[Tensor] = []  # keeps an address from being reused within one forward
        self._updated: set[int] = set()
        self.streams: list[InputStream] = []

    def start_batch(self) -> None:
        """Forget which memory was which input: it is used again by the next forward."""
        self._of_input.clear()
        self._alive.clear()
        self._updated.clear()

    def __call__(self, site: Site, x_TI: Tensor, output: Tensor) -> None:
        stream = self._stream_of.get(site.id)
        address = (x_TI.data_ptr(), x_TI._version, *x_TI.shape)
        if stream is None:
            stream = self._of_input.get(address) or self._new_stream(x_TI.shape[-1])
            stream.sites.append(site)
            self._stream_of[site.id] = stream
        self._of_input[address] = stream
        self._alive.append(x_TI)
        if id(stream) not in self._updated:
            self._updated.add(id(stream))
            stream.tokens += len(x_TI)
            for accumulator in stream.accumulators:
                accumulator.update(x_TI.detach())

    def _new_stream(self, features: int) -> InputStream:
        stream = InputStream(accumulators=accumulators_for(self._needs, features))
        self.streams.append(stream)
        return stream

    def statistics(self) -> dict[str, Statistics]:
        """Statistics by site id; sites that share an input share the tensors."""
        found: dict[str, Statistics] = {}
        for stream in self.streams:
            values = {a.statistic.value: a.result() for a in stream.accumulators}
            shared = Statistics(tokens=stream.tokens, **values)
            found |= {site.id: shared for site in stream.sites}
        return found

    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Ids of sites by shared input, in order of execution."""
        return tuple(tuple(site.id for site in stream.sites) for stream in self.streams)


def token_counts(statistics: Mapping[str, Statistics]) -> dict[str, int]:
    """Tokens that reached each site: small counts mean an expert was hardly calibrated."""
    return {site: item.tokens for site, item in statistics.items()}
