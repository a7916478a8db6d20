"""MatFormer: the first channels are a model of their own; the others are cut off.

Paper:   Devvrit, Kudugunta, Kusupati, et al., "MatFormer: Nested Transformer for Elastic
         Inference", NeurIPS 2024.
Idea:    A model that was trained so that the first f/8, f/4, f/2 channels of every FFN each do its
         work holds many models: any prefix is one, without training or calibration.  A plan picks a
         width for every block (Mix'n'Match) by measured losses.  In a model that was not trained so
         the first channels are any channels, and this loses much.

Equations -> code
    y = Wd[:, :g] (act(Wg[:g] x) o Wu[:g] x)        ModelPrefix.narrow
Shapes:  O outputs, I channels, K channels that stay.
Units:   Cost = bytes as stored.
Needs:   nothing.   Fills: narrow-*, heads-*.
Cost:    none.
Differs from the paper:
    1. Widths are the plan's choice, in place of those that differ least between neighbours.
    2. Heads are nested the same way, by key-value head.
Raises:  nothing.
Checked: tests/claims/test_width.py: children are nested, and are the whole model with zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from blockwright.errors import NumericalError
from blockwright.types import Format, Statistic, Statistics, WidthFormat, WidthMethod


@dataclass(frozen=True, kw_only=True)
class ModelPrefix(WidthMethod):
    """``matformer``"""

    paper: ClassVar[str] = (
        "Devvrit, Kudugunta, Kusupati et al.: MatFormer: Nested Transformer for Elastic Inference,"
        " NeurIPS 2024"
    )
    family: ClassVar[str] = "width"
    fills: ClassVar[type[Format]] = WidthFormat  # type: ignore[type-abstract]
    version: ClassVar[int] = 1

    @property
    def needs(self) -> frozenset[Statistic]:
        return frozenset()

    def narrow(
        self,
        W_OI: Tensor,
        statistics: Statistics,
        channels: int,
        *,
        columns: int = 1,
        readers: Sequence[Tensor] = (),
    ) -> tuple[Tensor, Tensor]:
        if not torch.isfinite(W_OI).all():
            raise NumericalError("the weight holds NaN or infinity")
        return torch.arange(channels), W_OI[:, : channels * columns].contiguous()


METHOD = ModelPrefix
