"""Codebooks: a few values, one of which, times the scale of its group, stands for every weight.

    W_hat = scale * values[code],   code = argmin_k |W / scale - values[k]|

Idea:    Where the values are does not matter to anything that stores or looks up codes: quantiles
         of a normal law, floating-point numbers of a few bits, powers of ten.  The scale is rounded
         to its stored dtype (bfloat16) *before* codes are computed, so that what is solved is what
         is loaded.

Equations -> code
    scale    fit_scale     s = shrink max(max W / max values, min W / min values)
    search   search_scale  least sum_j importance_j (W_hat_j - W_j)^2 over shrink = 1, .98 ... .6
    nearest  Codebook.encode   by the midpoints of neighbouring values; a tie takes the lower one
Shapes:  weights [..., J] in groups of J -> scale [...], fp32 that bfloat16 holds (or ``dtype``).
Raises:  NumericalError when a weight is not finite or beyond bfloat16, ValueError for a codebook
         of one value, without a zero, or of more than 256.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from blockwright.errors import NumericalError
from blockwright.numerics.ranges import CHUNK_ELEMENTS, SCALE_DTYPE, least_of_shrinks, next_lower


@dataclass(frozen=True)
class Codebook:
    """Values by code, in any order; of codes with one value the first is used."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        count = len(self.values)
        if len(set(self.values)) < 2 or count > 256 or 0.0 not in self.values:
            raise ValueError(f"a codebook of {count} values: needs 2 to 256, one of them 0")

    @cached_property
    def lowest(self) -> float:
        return min(self.values)

    @cached_property
    def highest(self) -> float:
        return max(self.values)

    @cached_property
    def outermost_midpoints(self) -> tuple[float, float]:
        """Where the least value ends and where the largest begins."""
        rising = sorted(set(self.values))
        return (rising[0] + rising[1]) / 2, (rising[-1] + rising[-2]) / 2

    def encode(self, x: Tensor) -> Tensor:
        """Codes uint8 of the nearest values; ties take the lower value."""
        midpoints, order, _, _ = _tables(self.values, str(x.device))
        places = torch.bucketize(x.float().contiguous(), midpoints, out_int32=True)
        return order[places]

    def decode(self, codes: Tensor) -> Tensor:
        """Values fp32 of codes; raises ``IndexError`` for codes that stand for nothing."""
        _, _, _, values = _tables(self.values, str(codes.device))
        return values[codes.int()]

    def rising(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Midpoints of neighbouring values, and the values, both rising, fp32."""
        midpoints, _, values, _ = _tables(self.values, str(device))
        return midpoints, values


@cache
def dynamic_codebook(*, signed: bool) -> Codebook:
    """The dynamic 8-bit type: 256 rising values of seven decades, the largest 1, the upper decades
    with more of them (Dettmers et al., "8-bit Optimizers via Block-wise Quantization", ICLR 2022).

    Signed ones end at -0.993; unsigned ones have twice as many per decade.
    """
    values = [0.0, 1.0]
    for decade in range(7):
        steps = 1 << (decade if signed else decade + 1)
        edges = [0.1 + 0.9 * step / steps for step in range(steps + 1)]
        middles = [(low + high) / 2 * 10.0 ** (decade - 6) for low, high in pairwise(edges)]
        values += middles + ([-middle for middle in middles] if signed else [])
    return Codebook(tuple(sorted(values)))


@lru_cache(maxsize=64)
def _tables(values: tuple[float, ...], device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Midpoints of the rising values, their codes, these values, and the values by code."""
    first_codes = {value: code for code, value in reversed(list(enumerate(values)))}
    rising = torch.tensor(sorted(first_codes), dtype=torch.float32)
    codes = torch.tensor([first_codes[value] for value in sorted(first_codes)], dtype=torch.uint8)
    by_code = torch.tensor(values, dtype=torch.float32)
    midpoints = (rising[1:] + rising[:-1]) / 2
    return midpoints.to(device), codes.to(device), rising.to(device), by_code.to(device)


def fit_scale(
    W: Tensor, codebook: Codebook, shrink: float = 1.0, dtype: torch.dtype = SCALE_DTYPE
) -> Tensor:
    """Scales of groups along the last axis: the outermost values reach the outermost weights.

    A group of zeros gets scale 1; a group of one value is exact when bfloat16 holds the value and
    the codebook its sign.  A scale that bfloat16 rounded up so far that neither outermost value
    would be used is taken one step lower: fitting the decoded weights again gives the same scale.
    """
    W = W.float()
    low, high = W.amin(-1), W.amax(-1)
    scale = high / codebook.highest
    if codebook.lowest < 0:
        scale = torch.maximum(scale, low / codebook.lowest)
    scale = (scale.clamp(min=0) * shrink).to(dtype).float()
    if not torch.isfinite(scale).all() or not torch.isfinite(low).all():
        raise NumericalError("a weight is not finite, or too large for a bfloat16 scale")
    if dtype == SCALE_DTYPE:
        bottom, top = codebook.outermost_midpoints
        unused = (high * shrink <= top * scale) & (low * shrink > bottom * scale)
        scale = torch.where(unused, next_lower(scale), scale)
    for sign in (1.0, -1.0):
        if sign in codebook.values:
            exact = (low == high) & (low * sign > 0) & (low.to(dtype).float() == low)
            scale = torch.where(exact, low.abs(), scale)
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def search_scale(
    W: Tensor,
    codebook: Codebook,
    importance: Tensor | None = None,
    dtype: torch.dtype = SCALE_DTYPE,
) -> Tensor:
    """Per group the shrunken scale of least squared error; ties keep the largest.

    ``importance`` has the shape of ``W[0]`` (inputs in groups: it is the same for every row).
    """
    rows = max(1, CHUNK_ELEMENTS // max(W[0].numel(), 1))
    return torch.cat([_search_chunk(W_R, codebook, importance, dtype) for W_R in W.split(rows)])


def _search_chunk(
    W: Tensor, codebook: Codebook, importance: Tensor | None, dtype: torch.dtype
) -> Tensor:
    def fit(shrink: float) -> tuple[Tensor]:
        return (fit_scale(W, codebook, shrink, dtype),)

    def errors(scale: Tensor) -> Tensor:
        return _scale_errors(W.float(), scale, codebook, importance)

    return least_of_shrinks(fit, errors)[0]


def _scale_errors(
    W: Tensor, scale: Tensor, codebook: Codebook, importance: Tensor | None
) -> Tensor:
    scale = scale.unsqueeze(-1)
    error = codebook.decode(codebook.encode(W / scale)).mul_(scale).sub_(W).square_()
    return (error if importance is None else error.mul_(importance)).sum(-1)
