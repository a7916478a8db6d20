"""Panels: a sparse weight as small dense matrices, each on the inputs that its rows share.

Shapes:  O outputs in P panels of R rows (the last one filled up with zeros), I inputs in units of
         C, U units and K = U C inputs kept per panel, T tokens.
Cost:    a product gathers P K numbers per token and multiplies O K of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MANY_TOKENS = 256
"""From so many tokens on, the weight is laid out densely for the call."""


@dataclass(frozen=True)
class PanelMatrix:
    """The kept values, and where they belong."""

    values_PRK: Tensor  # noqa: N815 - shape suffix
    units_PU: Tensor  # noqa: N815 - shape suffix
    """int32: the kept units of every panel, rising."""
    shape: tuple[int, int]
    unit: int
    """C"""

    @classmethod
    def of(
        cls, kept_OK: Tensor, mask_PU: Tensor, shape: tuple[int, int], unit: tuple[int, int]
    ) -> PanelMatrix:
        """From the kept values of every row and the mask of units."""
        rows, columns = unit
        panels, kept = len(mask_PU), kept_OK.shape[1]
        padded = F.pad(kept_OK, (0, 0, 0, panels * rows - len(kept_OK)))
        units = mask_PU.nonzero()[:, 1].view(panels, -1).int()
        return cls(padded.view(panels, rows, kept).contiguous(), units, shape, columns)

    @property
    def nbytes(self) -> int:
        """Bytes of values and indices."""
        return self.values_PRK.nbytes + self.units_PU.nbytes

    def kept(self) -> Tensor:
        """The kept values of every row, [O, K]."""
        return self.values_PRK.flatten(0, 1)[: self.shape[0]]

    def product(self, x: Tensor) -> Tensor:
        """x W^T [..., O], in the dtype of x."""
        x_TI = x.reshape(-1, x.shape[-1])
        if len(x_TI) >= MANY_TOKENS:
            return F.linear(x, self.dense().to(x.dtype))
        y_PRT = torch.bmm(self.values_PRK.to(x.dtype), self.gathered(x_TI))
        y_TO = y_PRT.flatten(0, 1)[: self.shape[0]].t()
        return y_TO.reshape(*x.shape[:-1], -1)

    def gathered(self, x_TI: Tensor) -> Tensor:
        """The inputs of every panel, [P, K, T]."""
        tokens, inputs = x_TI.shape
        x_UC = x_TI.t().reshape(inputs // self.unit, self.unit * tokens)
        found = x_UC.index_select(0, self.units_PU.flatten())
        return found.view(len(self.units_PU), -1, tokens)

    def dense(self) -> Tensor:
        """W [O, I]."""
        panels, rows, _ = self.values_PRK.shape
        places = torch.arange(self.unit, device=self.units_PU.device)
        columns_PK = (self.units_PU.long()[:, :, None] * self.unit + places).flatten(1)
        whole = self.values_PRK.new_zeros(panels, rows, self.shape[1])
        whole.scatter_(2, columns_PK[:, None].expand(-1, rows, -1), self.values_PRK)
        return whole.flatten(0, 1)[: self.shape[0]]
