"""The base of codebook formats: a code per weight, a scale per group, a table for all.

No CPU kernel of PyTorch looks values up.  Dequantizing on every call makes one token over a hundred
times slower than bfloat16, so a CPU keeps the dequantized weight beside the codes.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from blockwright.formats._grouped import GroupedFormat, GroupedLinear, Layout
from blockwright.numerics.codebooks import Codebook, fit_scale, search_scale
from blockwright.numerics.double_scales import OFFSET_DTYPE, STEP_DTYPE, DoubleScales, chunks_of
from blockwright.numerics.grids import CodebookGrid
from blockwright.numerics.ranges import SCALE_DTYPE
from blockwright.types import FormatLimits, GridSolution, Solution

DENSE_BITS = 16.0


class CodebookLinear(GroupedLinear):
    """The packed module.  ``scale`` is [O, G] in bfloat16; double-quantized, codes [G, O] with
    ``scale_offset`` and ``scale_step`` [G, C].
    """

    format: CodebookFormat  # narrower than the base's
    _dense: Tensor | None = None
    """[O, I] in the dtype of the activations, once prepared."""

    def prepare(self) -> Self:
        """A module whose scales are trained stays portable; so does one that is not on a CPU."""
        if self._dense is None and self.device.type == "cpu" and not self._is_trained():
            with torch.inference_mode(False), torch.no_grad():
                self._dense = self.dequantize().to(self.dtype)
        return self

    def restore(self) -> Self:
        self._dense = None
        return self

    def replace_stored(self, name: str, tensor: Tensor) -> None:
        self._dense = None
        super().replace_stored(name, tensor)

    @property
    def kernel(self) -> str:
        return "dequantized once" if self.device.type == "cpu" else "dequantize"

    @property
    def resident_bytes(self) -> int:
        return super().resident_bytes + (0 if self._dense is None else self._dense.nbytes)

    def _multiply(self, x: Tensor) -> Tensor:
        dense = self.prepare()._dense
        if dense is None or dense.dtype != x.dtype:
            return super()._multiply(x)
        return F.linear(x, dense)

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

    @property
    def limits(self) -> FormatLimits:
        return FormatLimits(
            in_multiple=self.group_size or 1, resident_bits=DENSE_BITS + self.code_bits
        )

    def resident_bytes(self, shape: tuple[int, int], device: str = "cpu") -> int:
        """On CPU: the dequantized bfloat16 weight, and what is stored."""
        on_cpu = torch.device(device).type == "cpu"
        dense = shape[0] * shape[1] * torch.bfloat16.itemsize
        return self.stored_bytes(shape) + (dense if on_cpu else 0)

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
