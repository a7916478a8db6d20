"""MoDeGPT: channels that explain the others stay; the matrix behind them is fitted again.

Paper:   Lin, Gao, Smith, Patel, Tuli, Shen, Jin, Hsu, "MoDeGPT: Modular Decomposition for Large
         Language Model Compression", ICLR 2025.
Idea:    An FFN's matrices share an inner dimension; a Nystroem approximation of the activations
         there keeps some channels and reads the others off them.  Channels of large ridge leverage
         are those that the others cannot replace.  The least-squares fit of the last matrix does
         most of the work: it wins where activations are correlated, and gains nothing where they
         are independent.

Equations -> code
    s_i = [C (C + ridge I)^-1]_ii           leverage       C = E[a a^T], a = the channels
    W_K = W C_:K (C_KK + damping I)^-1      refit          least squares on the channels that stay
    the second and third modules            narrow_heads   numerics/attention_pairs
Shapes:  O outputs, I channels, K channels that stay; of heads see HeadWeights.
Units:   ridge and damping are multiples of C's mean diagonal.  Cost = bytes as stored.
Needs:   INPUT_GRAM of the last matrix.   Fills: narrow-*, heads-*, headdim-*.
Cost:    time O(I^3 + O I K), memory 3 I^2 doubles.
Differs from the paper:
    1. Attention may have whole heads left out by the FFN's rule too: a key-value head with its
       query heads counts as one channel of many columns, its score the sum of theirs.
    2. The width of every FFN is the plan's choice, from measured losses, in place of a softmax of
       block scores; C is the original's, not that behind blocks that are already narrower.
    3. score=norm keeps the channels of largest root mean square times column norm.
    4. A refit towards the columns as they are, so that all channels kept change nothing.
Raises:  NumericalError when C holds NaN or infinity, or is not positive definite even damped.
Checked: tests/claims/test_width.py: held-out KL of the bundled model against magnitude pruning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from blockwright.errors import CandidateError, NumericalError
from blockwright.numerics.attention_pairs import (
    largest_units,
    query_key_scores,
    value_output,
)
from blockwright.numerics.channel_importance import largest_channels
from blockwright.numerics.channel_refit import damped_factor, refit
from blockwright.types import (
    Format,
    HeadWeights,
    NarrowHeads,
    Statistic,
    Statistics,
    WidthFormat,
    WidthMethod,
)

SCORES = ("leverage", "norm")


@dataclass(frozen=True, kw_only=True)
class ModeGpt(WidthMethod):
    """``modegpt``"""

    ridge: float = 0.1
    """Of the leverage scores."""
    damping: float = 1e-4
    """Of the refit."""
    score: str = "leverage"
    """``leverage`` or ``norm``."""
    refit: bool = True
    """Fit the last matrix again; otherwise its columns stay as they are."""

    paper: ClassVar[str] = (
        "Lin, Gao, Smith, Patel, Tuli, Shen, Jin, Hsu: MoDeGPT: Modular Decomposition for Large"
        " Language Model Compression, ICLR 2025"
    )
    family: ClassVar[str] = "width"
    fills: ClassVar[type[Format]] = WidthFormat  # type: ignore[type-abstract]
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise CandidateError(
                f"option modegpt@score: got {self.score!r}, allowed: {', '.join(SCORES)}"
            )
        if not (self.ridge > 0 and self.damping > 0):
            raise CandidateError(
                f"options modegpt@ridge={self.ridge:g},damping={self.damping:g}: both must be above"
                " 0; the defaults are 0.1 and 0.0001"
            )

    @property
    def needs(self) -> frozenset[Statistic]:
        return frozenset({Statistic.INPUT_GRAM})

    def narrow(
        self,
        W_OI: Tensor,
        statistics: Statistics,
        channels: int,
        *,
        columns: int = 1,
        readers: Sequence[Tensor] = (),
    ) -> tuple[Tensor, Tensor]:
        C_II = statistics.need(Statistic.INPUT_GRAM).double()
        if not torch.isfinite(C_II).all():
            raise NumericalError("the Gram of its channels holds NaN or infinity")
        unit = float(C_II.diagonal().mean()) or 1.0
        if self.score == "leverage":
            score_I = leverage(C_II, self.ridge * unit)
        else:
            score_I = C_II.diagonal().sqrt() * W_OI.double().norm(dim=0)
        kept_K, inputs_J = largest_channels(score_I, channels, columns)
        if not self.refit:
            return kept_K, W_OI[:, inputs_J].contiguous()
        return kept_K, refit(W_OI, C_II, inputs_J, self.damping * unit)

    def narrow_heads(self, heads: HeadWeights, statistics: Statistics, dims: int) -> NarrowHeads:
        C_II = statistics.need(Statistic.INPUT_GRAM)
        if not torch.isfinite(C_II).all():
            raise NumericalError("the Gram of its inputs holds NaN or infinity")
        score = query_key_scores(C_II, heads.query_HDI, heads.key_GDI, heads.units)
        kept = largest_units(score, heads.units, dims)
        shared = heads.query_HDI.shape[0] // heads.key_GDI.shape[0]
        values, outputs = [], []
        by_group = heads.output_OHD.unflatten(1, (-1, shared)).unbind(1)
        for Wv_DI, Wo_OSD in zip(heads.value_GDI, by_group, strict=True):
            under = Wo_OSD.transpose(0, 1).flatten(0, 1)
            Wv_RI, Wo_ER, _ = value_output(C_II, Wv_DI, under, dims)
            values.append(Wv_RI.float())
            outputs += Wo_ER.float().unflatten(0, (shared, -1)).unbind(0)
        return NarrowHeads(
            kept=kept, value_GRI=torch.stack(values), output_OHR=torch.stack(outputs, dim=1)
        )


def leverage(C_II: Tensor, ridge: float) -> Tensor:
    """Ridge leverage [I]: how much of channel i no other one gives, between 0 and 1."""
    inverse_II = torch.cholesky_inverse(damped_factor(C_II, ridge))
    score_I: Tensor = 1.0 - ridge * inverse_II.diagonal()
    return score_I


METHOD = ModeGpt
