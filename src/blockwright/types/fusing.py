"""Fused blocks: the format and the method of a block that also does what its neighbour did."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from blockwright.types.format import Format, PackedFormat

if TYPE_CHECKING:
    from torch import Tensor


class FuseFormat(Format):
    """A block with other weights, plain or each stored in ``values``; its neighbour is dropped."""

    values: PackedFormat | None
    behind: bool
    """Whether the neighbour is the block behind it, and not the one in front."""

    def lost(self, block: int) -> int:
        """Index of the neighbour that goes when ``block`` stays."""
        return block + (1 if self.behind else -1)


@dataclass(frozen=True, kw_only=True)
class NeighbourBlocks:
    """Two neighbours of which one stays, and what both together did."""

    kept: Mapping[str, Tensor]
    """Weights [O, I], fp32, of the block that stays, by their linears' names inside it."""
    lost: Mapping[str, Tensor]
    """Those of the other, where there is one of the same name and shape."""
    vectors: Mapping[str, Tensor] = field(default_factory=dict)
    """Norms and biases of the block that stays, in their stored dtype, by parameter name inside."""
    run: Callable[[Mapping[str, Tensor], Tensor, Any], Tensor]
    """The block that stays with other weights and vectors (those that are named): values, hidden
    states, an example's arguments -> hidden states."""
    batches: Sequence[Any]
    """Of ``tuning.Example``: what goes into the first of both blocks, what came out of the second.
    """
    where: str
    """For messages."""


@dataclass(frozen=True, kw_only=True)
class FusedBlock:
    """What the block that stays becomes."""

    weights: Mapping[str, Tensor]
    """[O, I], fp32, under the names of ``NeighbourBlocks.kept``."""
    vectors: Mapping[str, Tensor]
    """In their stored dtype, under the names of ``NeighbourBlocks.vectors``."""
    start_loss: float
    """Squared error over squared size of what both blocks gave together, on batches that nothing
    was trained on: of the block as it was."""
    loss: float
    """Of the fused one."""


class FusingMethod(ABC):
    """A method that makes one block of two.  Implementations are frozen dataclasses."""

    paper: ClassVar[str]
    """Authors, title, venue, year."""
    family: ClassVar[str]
    """depth."""
    version: ClassVar[int]
    """Raised whenever the result changes: part of the library's key."""
    fills: ClassVar[type[Format]]
    """The kind of format it can fill."""
    steps: int
    """Forwards and backwards of a block that it takes."""
    checks: int
    """How often it asks the batches that nothing is trained on, beside once before."""

    @property
    def needs(self) -> frozenset[Any]:
        """It learns from hidden states, and reads no statistics."""
        return frozenset()

    @abstractmethod
    def fuse(self, blocks: NeighbourBlocks) -> FusedBlock:
        """Weights and vectors with which the block that stays does what both did.

        Tensors are not modified.  Raises ``NumericalError`` with the reason when no finite solution
        is found.
        """
