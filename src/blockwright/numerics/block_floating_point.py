"""Block floating point: N neighbours along the last axis share one power of two.

    W_hat = mantissa 2^e,   mantissa a signed integer of ``bits`` bits

Paper:   Trukhanov and Soloveychik, "Accurate Block Quantization in LLMs with Outliers", 2024.
Idea:    Products of mantissas are integers and scales are shifts, and an exponent costs 8 bits per
         N weights.  One outlier takes the digits of its N - 1 neighbours; K-sort orders channels by
         their norm, so that outliers share a group with outliers.

Equations -> code
    BFP     fit_exponents      e = floor(log2 absmax) + 1 - (bits - 1)
    BFP     encode             c = clip(round(x / 2^e), -2^(bits-1), 2^(bits-1) - 1), ties to even
    K-sort  order_by_norm      channels by descending norm, ties in their own order
Shapes:  values [..., D], exponents [..., D / N]; N = D where ``group_size`` is 0.
Units:   bits per value = bits + 8 / N.
Differs: 1. Where the absmax is a negative power of two and all else fits, the most negative
            mantissa holds it and e is one less, so that decoded values are fitted exactly.
         2. Exponents are clamped to those whose values are normal fp32 numbers: groups below
            2^-126 are zero, groups above 2^127 saturate.
Raises:  ValueError when N does not divide D.  Values have to be finite; nothing checks that here.
"""

from __future__ import annotations

import torch
from torch import Tensor

BITS = range(2, 9)
"""Mantissas that fit int8."""
EXPONENT_DTYPE = torch.int8
LEAST_EXPONENT = -126
LARGEST_POWER = 127
"""The largest power of two in fp32: the most negative mantissa must not pass it."""
SEARCHED_STEPS = 3
"""Exponents that ``search_exponents`` tries: the fitted one and the next smaller ones."""


def fit_exponents(x: Tensor, bits: int, group_size: int = 0) -> Tensor:
    """Exponents e (int8 [..., D / N]) of the steps 2^e that just hold every group's absmax."""
    low, high = (edge.float() for edge in torch.aminmax(grouped(x, group_size), dim=-1))
    absmax = torch.maximum(-low, high)
    fraction, above = torch.frexp(absmax)  # 2^(above - 1) <= absmax < 2^above
    top = absmax * (1 - 2.0 ** (1 - bits))
    finer = (fraction == 0.5) & (-low == absmax) & (high <= top)
    exponents = torch.where(absmax == 0, LEAST_EXPONENT, above - (bits - 1) - finer.int())
    return exponents.clamp_(LEAST_EXPONENT, LARGEST_POWER - (bits - 1)).to(EXPONENT_DTYPE)


def search_exponents(
    x: Tensor, bits: int, group_size: int = 0, importance: Tensor | None = None
) -> Tensor:
    """The exponents of least squared error among the fitted and the next smaller ones.

    ``importance`` [D] weighs the channels.  Ties keep the larger step.
    """
    best = fit_exponents(x, bits, group_size)
    least = _errors(x, best, bits, importance)
    for lower in range(1, SEARCHED_STEPS):
        tried = fit_exponents(x, bits, group_size).sub_(lower).clamp_(min=LEAST_EXPONENT)
        error = _errors(x, tried, bits, importance)
        better = error < least
        least, best = torch.where(better, error, least), torch.where(better, tried, best)
    return best


def step_sizes(exponents: Tensor) -> Tensor:
    """2^e, fp32, exactly."""
    return ((exponents.to(torch.int32) + 127) << 23).view(torch.float32)


def encode(x: Tensor, exponents: Tensor, bits: int) -> Tensor:
    """Mantissas int8 [..., D] of values [..., D]."""
    steps = step_sizes(exponents).unsqueeze(-1)
    mantissas = x.float().reshape(*exponents.shape, -1) / steps
    half = 1 << (bits - 1)
    return mantissas.round_().clamp_(-half, half - 1).to(torch.int8).view(x.shape)


def decode(mantissas: Tensor, exponents: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Values [..., D] of mantissas; exact in fp32, and in bfloat16 wherever they are normal."""
    values = mantissas.to(torch.float32).view(*exponents.shape, -1)
    return (values * step_sizes(exponents).unsqueeze(-1)).view(mantissas.shape).to(dtype)


def round_to_bfp(x: Tensor, bits: int, group_size: int = 0) -> Tensor:
    """The nearest block floating point values, in the dtype of x."""
    exponents = fit_exponents(x, bits, group_size)
    return decode(encode(x, exponents, bits), exponents, x.dtype)


def order_by_norm(norms: Tensor) -> Tensor:
    """K-sort: the order (indices [..., D]) of descending norms; ties stay in their own order.

    ``x[..., order]`` is sorted, and ``torch.argsort(order)`` brings it back.
    """
    return torch.argsort(norms, dim=-1, descending=True, stable=True)


def grouped(x: Tensor, group_size: int) -> Tensor:
    """A view [..., D / N, N]."""
    channels = x.shape[-1]
    size = group_size or channels
    if channels % size:
        raise ValueError(f"groups of {size} do not divide {channels} channels")
    return x.reshape(*x.shape[:-1], channels // size, size)


def _errors(x: Tensor, exponents: Tensor, bits: int, importance: Tensor | None) -> Tensor:
    """Squared error of every group, fp32 [..., D / N]."""
    error = decode(encode(x, exponents, bits), exponents).sub_(x.float()).square_()
    weighed = error if importance is None else error.mul_(importance)
    return weighed.view(*exponents.shape, -1).sum(-1)
