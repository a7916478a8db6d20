"""Sites: the places of a model that a candidate can replace."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class SiteKind(StrEnum):
    """What a candidate replaces; see the words in the documentation."""

    LINEAR = "linear"
    GROUP = "group"
    PART = "part"
    BLOCK = "block"
    TABLE = "table"
    CACHE = "cache"
    POLICY = "policy"


class TableRole(StrEnum):
    """What a table does: look rows up, project to logits, or both (tied)."""

    EMBEDDING = "embedding"
    HEAD = "head"
    TIED = "tied"


@dataclass(frozen=True, kw_only=True)
class Site:
    """One replaceable place.

    A linear site is a weight of shape ``(out, in)``: a whole parameter, or one expert's slice of a
    3-D parameter.  A block site is a whole transformer layer.  A table site is an embedding or a
    head.
    """

    id: str
    """Module path, e.g. ``model.layers.3.mlp.down_proj``; ``...experts.down_proj[5]`` for an
    expert.
    """
    kind: SiteKind
    block: int | None = None
    """Index of the block it belongs to; None for tables."""
    shape: tuple[int, int] = (0, 0)
    """(out, in) of the weight; (0, 0) for a block."""
    parameter: str = ""
    """Name of the model parameter that holds the weight; empty for a block."""
    bias: str | None = None
    """Name of the bias parameter, if there is one."""
    expert: int | None = None
    """Index into the first axis of a 3-D parameter."""
    transposed: bool = False
    """True where the parameter stores [in, out] (Conv1D)."""
    role: TableRole | None = None
    tied_to: tuple[str, ...] = ()
    """Other parameters that share this table's tensor."""
    weights: int = 0
    """Number of weights (for a block: of all its linear sites)."""
    tie: str = ""
    """Sites with the same non-empty tie take the same candidate (experts of one matrix)."""

    @property
    def module(self) -> str:
        """Path of the module that is replaced (for an expert: of its stack of matrices)."""
        return self.id.partition("[")[0]

    @property
    def stored_prefix(self) -> str:
        """Where a fitted folder keeps the packed tensors: this plus the tensor's name."""
        if self.expert is not None:
            return f"{self.parameter}_packed.{self.expert}."
        if self.kind is SiteKind.TABLE:
            return f"{self.module}.packed."
        return f"{self.module}."
