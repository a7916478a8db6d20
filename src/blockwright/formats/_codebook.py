"""The base of codebook formats: a code per weight, a scale per group, a table for all.

No CPU kernel of PyTorch looks values up: the weight is dequantized in chunks on every call.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from blockwright.formats._grouped import GroupedFormat, GroupedLinear, Layout
from blockwright.numerics.codebooks import Codebook, fit_scale, search_scale
from blockwright.numerics.double_scales import OFFSET_DTYPE, STEP_DTYPE, DoubleScales, chunks_of
from blockwright.numerics.grids import CodebookGrid
from blockwright.numerics.ranges import SCALE_DTYPE
from blockwright.types import GridSolution, Solution


class CodebookLinear(GroupedLinear):
    """The packed module.  ``scale`` is [O, G] in bfloat16; double-quantized, codes [G, O] with
    ``scale_offset`` and ``scale_step`` [G, C].
    """

    format: CodebookFormat  # narrower than the base's

    def decoded(self, codes_RGJ: Tensor, rows: slice | Tensor) -> Tensor:
        return self.format.codebook.decode(codes_RGJ) * self._scale_OG()[rows].unsqueeze(-1)

    def _scale_OG(self) -> Tensor:
        """fp32 [O, G], with gradients"""
        scale = self.get_buffer("scale")
        if not self.format.double:
            return scale.float()
        beside = (self.get_buffer(f"scale_{name}") for name in ("offset", "step"))
        return DoubleScales(scale, *beside).scale()


class CodebookFormat(GroupedFormat):
    """A format of the values of ``codebook``; implementations are frozen dataclasses."""

    module = CodebookLinear
    double: bool = False
    """Whether scales are stored as 8-bit codes."""

    @property
    @abstractmethod
    def codebook(self) -> Codebook:
        """The values by code."""

    def layout(self, out_features: int, groups: int) -> Layout:
        if not self.double:
            return {"scale": ((out_features, groups), SCALE_DTYPE)}
        chunks = (groups, chunks_of(out_features))
        return {
            "scale": ((groups, out_features), torch.uint8),
            "scale_offset": (chunks, OFFSET_DTYPE),
            "scale_step": (chunks, STEP_DTYPE),
        }

    def fit_grid(
        self, W_OI: Tensor, *, search: bool = False, importance_I: Tensor | None = None
    ) -> CodebookGrid:
        size = self.group_size or W_OI.shape[1]
        W_OGJ = W_OI.float().reshape(W_OI.shape[0], -1, size)
        dtype = torch.float32 if self.double else SCALE_DTYPE  # rounded once, as stored
        if search:
            importance_GJ = None if importance_I is None else importance_I.float().view(-1, size)
            scale = search_scale(W_OGJ, self.codebook, importance_GJ, dtype)
        else:
            scale = fit_scale(W_OGJ, self.codebook, dtype=dtype)
        if self.double:
            scale = DoubleScales.nearest(scale, (W_OGJ == 0).all(-1)).scale().contiguous()
        return CodebookGrid(scale, self.codebook, self.group_size)

    def pack(self, solution: Solution, bias_O: Tensor | None, dtype: torch.dtype) -> GroupedLinear:
        if (
            not isinstance(solution, GridSolution)
            or not isinstance(solution.grid, CodebookGrid)
            or solution.grid.codebook != self.codebook
        ):
            raise TypeError(f"{self.name} stores codes of its own codebook, not {solution}")
        return self.packed(solution.codes_OI, self._stored(solution.grid.scale), bias_O, dtype)

    def _stored(self, scale_OG: Tensor) -> dict[str, Tensor]:
        """What is stored beside the codes; ``ValueError`` where that would change a scale."""
        if not self.double:
            return {"scale": scale_OG.to(SCALE_DTYPE, copy=True)}
        stored = DoubleScales.nearest(scale_OG)
        if not torch.equal(stored.scale(), scale_OG):
            raise ValueError(f"{self.name}: the scales of a solution are not double-quantized")
        return {
            "scale": stored.codes,
            "scale_offset": stored.offset,
            "scale_step": stored.step,
        }
