"""Rescaling by integers alone: a positive number as m / 2^c, and sums multiplied by it.

Paper:   Yao et al., "HAWQ-V3: Dyadic Neural Network Quantization", ICML 2021, Section 3.1-3.2.
Idea:    Between two integer products stands one real number per row, s_x s_w / s_y.  Rounded to
         m / 2^c it costs a multiplication and a shift, so that no floating-point number is needed
         from the first input to the last output.

Equations -> code
    DN(M) = m / 2^c          dyadic        frexp: M = f 2^e, m = round(f 2^31), c = 31 - e
    q_y = DN(M) a            requantize    (a m + 2^(c-1)) >> c in 64 bits: halves round up
    residual                 add_dyadic    both branches rescaled, then added
Shapes:  any.
Units:   m below 2^31, a within 32 bits: their product fits 63.
Raises:  NumericalError where M is not positive, not finite, or at least 2^31.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blockwright.errors import NumericalError

MULTIPLIER_BITS = 31
MOST_SHIFT = 62
"""2^(c - 1) and what it is added to stay below 2^63."""


def dyadic(M: Tensor, bits: int = MULTIPLIER_BITS) -> tuple[Tensor, Tensor]:
    """m (int32) and c (int8) of M = m / 2^c, m of ``bits`` bits; smaller ones where c would pass
    62.
    """
    if not (torch.isfinite(M) & (M > 0)).all():
        raise NumericalError("a dyadic number stands for a positive, finite one")
    fraction, exponent = torch.frexp(M.double())  # 1/2 <= fraction < 1
    m = (fraction * 2.0**bits).round().long()
    carried = m == 1 << bits
    m, exponent = torch.where(carried, m >> 1, m), exponent + carried.int()
    c = bits - exponent
    beyond = (c - MOST_SHIFT).clamp(min=0)
    if (c < 0).any():
        raise NumericalError(f"a dyadic number of {bits} bits stays below 2^{bits}")
    return (m >> beyond).to(torch.int32), (c - beyond).to(torch.int8)


def value_of(m: Tensor, c: Tensor) -> Tensor:
    """m / 2^c, fp64."""
    return m.double() * 2.0 ** -c.double()


def requantize(sums: Tensor, m: Tensor, c: Tensor) -> Tensor:
    """Integers times m / 2^c, int64, halves up; m and c broadcast against them."""
    c = c.long()  # a shift of 32 bits in int32 is no shift
    half = torch.where(c > 0, torch.ones_like(c) << (c - 1).clamp(min=0), 0)
    return (sums.long() * m.long() + half) >> c


def add_dyadic(
    first: Tensor, first_by: tuple[Tensor, Tensor], second: Tensor, second_by: tuple[Tensor, Tensor]
) -> Tensor:
    """The sum of two branches of integers, each rescaled to the units of the output, int64."""
    return requantize(first, *first_by) + requantize(second, *second_by)
