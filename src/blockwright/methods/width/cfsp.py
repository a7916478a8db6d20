"""CFSP: channels stay that are active and stand out among the weights on the same coordinates.

Paper:   Wang, Ma, Wang, et al., "CFSP: An Efficient Structured Pruning Framework for LLMs with
         Coarse-to-Fine Activation Information", COLING 2025.
Idea:    One forward pass says how large every channel is; what it carries is that size times its
         share of the coordinates that it reads and writes.  Nothing is fitted again, so it is cheap
         and loses more than a refit; the paper trains behind it.

Equations -> code
    s_j = n_j mean(n_j |Wd_:j| / sum, |Wu_j:| / sum, |Wg_j:| / sum)      channel_scores
Shapes:  O outputs, I channels, K channels that stay.
Units:   n_j = root mean square of a channel.  Cost = bytes as stored.
Needs:   INPUT_GRAM of the last matrix (its diagonal).   Fills: narrow-*, heads-*.
Cost:    time O(O I), memory O I.
Differs from the paper:
    1. The width of every part is the plan's choice, from measured losses, in place of a share by
       how far its block turns its tokens (``numerics.channel_importance.widths``).
    2. Weights count by their share over channels, see ``numerics.channel_importance``.
    3. refit=true fits the last matrix again on the channels that stay.
    4. A head counts as the sum of its columns, by the last matrix alone.
Raises:  NumericalError when the Gram holds NaN or infinity.
Checked: tests/claims/test_width.py, tests/claims/test_cfsp.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from blockwright.errors import CandidateError, NumericalError
from blockwright.numerics.channel_importance import channel_scores, largest_channels
from blockwright.numerics.masked_refit import masked_refit
from blockwright.types import Format, Statistic, Statistics, WidthFormat, WidthMethod


@dataclass(frozen=True, kw_only=True)
class Cfsp(WidthMethod):
    """``cfsp``"""

    refit: bool = False
    """Fit the last matrix again; otherwise its columns stay as they are."""
    damping: float = 0.01
    """Of the refit, as a multiple of the Gram's mean diagonal."""

    paper: ClassVar[str] = (
        "Wang, Ma, Wang et al.: CFSP: An Efficient Structured Pruning Framework for LLMs with"
        " Coarse-to-Fine Activation Information, COLING 2025"
    )
    family: ClassVar[str] = "width"
    fills: ClassVar[type[Format]] = WidthFormat  # type: ignore[type-abstract]
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not self.damping > 0:
            raise CandidateError(
                f"option cfsp@damping={self.damping:g}: it must be above 0; the default is 0.01"
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
        H_II = statistics.need(Statistic.INPUT_GRAM)
        if not torch.isfinite(H_II).all():
            raise NumericalError("the Gram of its channels holds NaN or infinity")
        alike = [] if columns > 1 else [reader_ID.double() for reader_ID in readers]
        score_I = channel_scores(W_OI.double(), alike, H_II.diagonal().double().sqrt())
        kept_K, inputs_J = largest_channels(score_I, channels, columns)
        if self.refit:
            mask_I = torch.zeros(W_OI.shape[1], dtype=torch.bool, device=W_OI.device)
            mask_I[inputs_J] = True
            W_OI = masked_refit(W_OI, H_II, mask_I.expand_as(W_OI), self.damping)
        return kept_K, W_OI[:, inputs_J].contiguous()


METHOD = Cfsp
