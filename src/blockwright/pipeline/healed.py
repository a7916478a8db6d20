"""Healed tensors of a plan, laid over its variants and over the original's parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from blockwright.anatomy import Skeleton
from blockwright.library import Library
from blockwright.stream import WeightSource
from blockwright.types import Site, packed_name, parameter_name


class HealedTensors:
    """Reads the entry of a block when one of its tensors is asked for; keeps the last one."""

    def __init__(self, library: Library, skeleton: Skeleton, healed: Mapping[str, str]) -> None:
        """``healed``: block site -> library key, see ``Plan.healed``."""
        self._library, self._prefix = library, skeleton.block_path + "."
        self._keys = {int(block.removeprefix(self._prefix)): key for block, key in healed.items()}
        self._last: tuple[int, Mapping[str, Tensor]] | None = None

    def packed(self, site: Site) -> dict[str, Tensor]:
        """Stored tensors of a packed site that healing changed."""
        start = packed_name(site.id, "")
        tensors = {} if site.block is None else self._of_block(site.block)
        return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}

    def over(self, base: WeightSource) -> WeightSource:
        """The base with healed parameters in place."""
        return _Overlaid(base, self) if self._keys else base

    def parameter(self, name: str) -> Tensor | None:
        """A healed parameter; None where it is the original's."""
        if not name.startswith(self._prefix):
            return None
        block = int(name.removeprefix(self._prefix).partition(".")[0])
        return self._of_block(block).get(parameter_name(name))

    def _of_block(self, block: int) -> Mapping[str, Tensor]:
        if block not in self._keys:
            return {}
        if self._last is None or self._last[0] != block:
            self._last = block, self._library.tensors(self._keys[block])
        return self._last[1]


class _Overlaid:
    """A source with healed parameters in place of its own."""

    def __init__(self, base: WeightSource, healed: HealedTensors) -> None:
        self._base, self._healed = base, healed

    def load(self, parameters: Iterable[str]) -> dict[str, Tensor]:
        tensors = self._base.load(parameters)
        for name in tensors:
            found = self._healed.parameter(name)
            if found is not None:
                tensors[name] = found.clone()
        return tensors
