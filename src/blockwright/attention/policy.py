"""The interface of a policy: which tiles one attention call visits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from blockwright.attention.engines.products import Product
from blockwright.attention.far import FarField
from blockwright.attention.layout import Layout
from blockwright.attention.partial import Partial
from blockwright.attention.selection import Selection


@dataclass(frozen=True, kw_only=True)
class Context:
    """What surrounds one call."""

    layout: Layout
    scale: float
    layer: int | None = None
    """Number of the block, where there are several."""
    step: int | None = None
    """Denoising step of a diffusion model."""
    grid: tuple[int, int, int] | None = None
    """Frames, rows and columns of a video; tokens count along columns first."""
    spans: Tensor | None = None
    """int64 [documents + 1]: first slot of each document, and the end of the last."""
    ends: Tensor | None = None
    """bool [B, Nk]: the tokens that end a chunk of text."""
    scorer: Callable[[Tensor, Tensor], Tensor] | None = None
    """Scores [B, n, C] of queries [B, H, n, D] for chunks of last keys [B, Hkv, C, D]."""
    seed: int = 0
    memory: MutableMapping[str, Tensor] = field(default_factory=dict)
    """What a policy keeps between the calls of one layer."""


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Stop walking a list when one more part of it adds almost nothing to the softmax."""

    below: float
    """Share of a row's sum that one part must add, else its query tile is finished."""
    part: int
    """List entries per part."""
    worst_row: bool = False
    """Judge by the row that gains most, not by the mean row."""
    least_parts: int = 2


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a policy decided for one call."""

    selection: Selection | None
    """None: everything visible."""
    layout: Layout | None = None
    """In place of the call's: keys in another order, or fewer pairs visible."""
    far: tuple[FarField, ...] = ()
    stop: Stop | None = None
    multiply: Product | None = None
    """Computes the tiles, in place of the engine's own product."""


@dataclass(frozen=True, kw_only=True)
class Knob:
    """The hyperparameter that spends a policy's budget: the greater, the denser."""

    name: str
    least: float
    most: float | None
    """None: the number of key tiles, or of tokens where tiles are tokens."""
    whole: bool = False


class Policy(ABC):
    """Chooses tiles.  Implementations are frozen, keyword-only dataclasses of hyperparameters."""

    paper: ClassVar[str]
    """Authors, title, venue, year."""
    knob: ClassVar[Knob | None] = None
    train_safe: ClassVar[bool] = False
    """Whether a row's output never depends on later tokens, the choice of tiles included."""
    causal: ClassVar[bool] = True
    bidirectional: ClassVar[bool] = True
    decode: ClassVar[bool] = False
    """Whether it chooses for single queries too; the others decode densely."""

    remembers: ClassVar[bool] = False
    """Whether what it chooses depends on earlier calls, through ``Context.memory``."""

    @abstractmethod
    def choose(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Choice:
        """Tiles for q [B, H, Nq, D], k [B, Hkv, Nk, D], v [B, Hkv, Nk, Dv]."""

    def finish(
        self, part: Partial, q: Tensor, k: Tensor, v: Tensor, choice: Choice, context: Context
    ) -> Partial:
        """A last step after attention over the tiles."""
        return part
