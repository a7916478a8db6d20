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

FEW_TOKENS = 2
"""Up to so many, turning inputs and outputs costs more than it saves."""
CHUNK_TOKENS = 128
"""Taken together: what is gathered for more falls out of the cache."""


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
        values_PRK = self.values_PRK.to(x.dtype)
        product = self._of_few if len(x_TI) <= FEW_TOKENS else self._of_more
        found = [product(chunk, values_PRK) for chunk in x_TI.split(CHUNK_TOKENS)]
        y_TO = found[0] if len(found) == 1 else torch.cat(found)
        return y_TO.reshape(*x.shape[:-1], self.shape[0])

    def _of_few(self, x_TI: Tensor, values_PRK: Tensor) -> Tensor:
        """Tokens stay rows: nothing is turned."""
        tokens = len(x_TI)
        x_TUC = x_TI.reshape(tokens, -1, self.unit)
        found = x_TUC.index_select(1, self.units_PU.flatten())
        found_PTK = found.view(tokens, len(self.units_PU), -1).transpose(0, 1)
        y_PTR = torch.bmm(found_PTK, values_PRK.mT)
        return y_PTR.transpose(0, 1).flatten(1)[:, : self.shape[0]]

    def _of_more(self, x_TI: Tensor, values_PRK: Tensor) -> Tensor:
        """Inputs become rows, so that what is gathered is contiguous."""
        tokens, inputs = x_TI.shape
        x_UC = x_TI.t().contiguous().view(inputs // self.unit, self.unit * tokens)
        found = x_UC.index_select(0, self.units_PU.flatten())
        y_PRT = torch.bmm(values_PRK, found.view(len(self.units_PU), -1, tokens))
        return y_PRT.flatten(0, 1)[: self.shape[0]].t()

    def dense(self) -> Tensor:
        """W [O, I]."""
        panels, rows, _ = self.values_PRK.shape
        places = torch.arange(self.unit, device=self.units_PU.device)
        columns_PK = (self.units_PU.long()[:, :, None] * self.unit + places).flatten(1)
        whole = self.values_PRK.new_zeros(panels, rows, self.shape[1])
        whole.scatter_(2, columns_PK[:, None].expand(-1, rows, -1), self.values_PRK)
        return whole.flatten(0, 1)[: self.shape[0]]
