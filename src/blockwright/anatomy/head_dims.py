"""Finds which linears of an attention are queries, keys, values and outputs, and what may go inside
their heads.

Tried, not named, on a block whose heads are known (``heads``):

    values and outputs    the values of every head turned, and the columns that read them turned
                          back, change nothing
    queries and keys      dimensions of queries times s, and of keys over s, change nothing when s
                          is one for what the rotation by position mixes

The second fails where queries and keys are normalised head by head.  Orders of rotation that are
known: halves (i with i + R / 2) and neighbours, of all R = D dimensions, half or a quarter of them;
none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from blockwright.anatomy.changed import With
from blockwright.anatomy.channels import BlockRun, Same
from blockwright.types import Channels, HeadDims, Site

Units = tuple[tuple[int, ...], ...]
"""Dimensions of a head that a rotation mixes."""
Change = Callable[[Tensor], Tensor]
"""Rows of all heads [H, D, I] -> others."""


def find_head_dims(
    block: nn.Module,
    prefix: str,
    members: Sequence[Site],
    channels: Channels | None,
    run: BlockRun,
    same: Same,
) -> tuple[HeadDims | None, str]:
    """The dimensions of an attention's heads, names relative to the block, or why none can go.

    ``channels``: its heads, if they were found.
    """
    if channels is None:
        return None, "its heads were not told apart"
    if len(channels.readers) != 3:
        return None, "queries, keys and values are not matrices of their own"
    trial = _Trial(block, prefix, {s.id.removeprefix(prefix): s for s in members}, channels)
    expected = run(block)
    for value in channels.readers:
        if not same(run(With(block, trial.turned(value))), expected):
            continue
        rest = [name for name in channels.readers if name != value]
        query, key = sorted(rest, key=lambda name: -channels.readers[name][0])
        for units in possible_units(trial.size):
            if same(run(With(block, trial.scaled(query, key, units))), expected):
                found = HeadDims(
                    query=query,
                    key=key,
                    value=value,
                    output=channels.writer,
                    size=trial.size,
                    units=units,
                )
                return found, ""
        return None, "its queries and keys are normalised, or rotated in an unknown order"
    return None, "no matrix gives its values head by head"


def possible_units(size: int) -> Iterator[Units]:
    """Orders of rotation of a head's dimensions."""
    yield tuple((dim,) for dim in range(size))
    for rotated in (size, size // 2, size // 4):
        half, rest = rotated // 2, tuple((dim,) for dim in range(rotated, size))
        if half and rotated % 2 == 0:
            yield (*((dim, dim + half) for dim in range(half)), *rest)
            yield (*((2 * dim, 2 * dim + 1) for dim in range(half)), *rest)


class _Trial:
    """A block with other parameters that should change nothing."""

    def __init__(
        self, block: nn.Module, prefix: str, sites: dict[str, Site], channels: Channels
    ) -> None:
        self._block, self._prefix, self._sites = block, prefix, sites
        self._channels = channels
        self.size = min(pieces for pieces, _ in channels.readers.values())

    def turned(self, value: str) -> dict[str, Tensor]:
        """The values turned inside every head, and turned back by the writer."""
        draw = torch.Generator().manual_seed(0)
        Q_DD = torch.linalg.qr(torch.randn(self.size, self.size, generator=draw)).Q
        found = self._rows(value, lambda rows_HDI: torch.einsum("de,hei->hdi", Q_DD, rows_HDI))
        site = self._sites[self._channels.writer]
        W_OI = self._weight(site)
        heads = W_OI.unflatten(1, (-1, self.size))
        back = torch.einsum("ohe,de->ohd", heads, Q_DD).flatten(1)
        return found | {self._local(site.parameter): back.T if site.transposed else back}

    def scaled(self, query: str, key: str, units: Units) -> dict[str, Tensor]:
        """The queries' dimensions times numbers of their units, the keys' over them."""
        s_D = torch.ones(self.size)
        for place, unit in enumerate(units):
            s_D[list(unit)] = 1.0 + (place + 1) / len(units)
        found = self._rows(query, lambda rows_HDI: rows_HDI * s_D[:, None])
        return found | self._rows(key, lambda rows_HDI: rows_HDI / s_D[:, None])

    def _rows(self, name: str, change: Change) -> dict[str, Tensor]:
        """Weight and bias of a linear with its rows changed head by head."""
        site = self._sites[name]
        rows_HDI = self._weight(site).unflatten(0, (-1, self.size))
        W_OI = change(rows_HDI).flatten(0, 1)
        found = {self._local(site.parameter): W_OI.T if site.transposed else W_OI}
        if site.bias is not None:
            bias = self._block.get_parameter(self._local(site.bias))
            rows_HD1 = bias.unflatten(0, (-1, self.size))[..., None]
            found[self._local(site.bias)] = change(rows_HD1).flatten()
        return found

    def _weight(self, site: Site) -> Tensor:
        weight = self._block.get_parameter(self._local(site.parameter))
        return weight.T if site.transposed else weight

    def _local(self, name: str) -> str:
        return name.removeprefix(self._prefix)
