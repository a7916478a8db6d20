"""Which rows and columns of a weight are there at all: sparse Bayesian learning with a joint prior.

    y = W x + noise,   w_oi ~ N(0, r_o c_i)

Paper:   He, Joseph, "Bayesian Algorithms for Kronecker-structured Sparse Vector Recovery With
         Application to IRS-MIMO Channel Estimation", 2023.
Idea:    The variance of a weight is a product: a switch for its row and one for its column.  All
         rows vote on a column, so that supports are found from fewer samples than a switch per
         weight would need.  EM finds the switches; those of what is not there fall to 0.

Equations -> code
    Sigma_o = (k H + diag(1 / (r_o c)))^-1, mu_o = k Sigma_o b_o     posterior
    r_o = mean_i e_oi / c_i, c_i = mean_o e_oi / r_o, e = mu^2 + diag Sigma     alternating
    r c^T = rank-1 approximation of e                                leading_pair
Shapes:  O rows, I columns; b [O, I] = E[y x^T], H [I, I] = E[x x^T].
Units:   k = samples / variance of the noise.
Cost:    one eigendecomposition of I x I and O(O I^2) a round; memory I^2 + O I in float64.
Differs from the paper: all rows share one eigendecomposition, because C^1/2 H C^1/2 does not depend
         on r; inversions one by one would cost O I^3.
Raises:  NumericalError when b or H is not finite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from blockwright.errors import NumericalError
from blockwright.numerics.finite import all_finite

Rule = Literal["alternating", "svd"]
INNER_ROUNDS = 2
"""Alternations of one M step."""
SMALLEST = 1e-12
"""Switches stay above this share of the largest: what is off stays off."""


@dataclass(frozen=True)
class Switches:
    """Variances of rows and columns, and the mean of the weight, float64."""

    rows_O: Tensor  # noqa: N815 - shape suffix
    columns_I: Tensor  # noqa: N815 - shape suffix
    """Mean 1."""
    mean_OI: Tensor  # noqa: N815 - shape suffix


def joint_support(
    b_OI: Tensor, H_II: Tensor, precision: float, *, rounds: int = 50, rule: Rule = "svd"
) -> Switches:
    """EM from equal switches; raises ``ValueError`` for an unknown rule."""
    if rule not in get_args(Rule):
        raise ValueError(f"rule {rule!r}: {', '.join(get_args(Rule))}")
    if not (all_finite(b_OI) and all_finite(H_II)):
        raise NumericalError("the weight or the input Gram holds NaN or infinity")
    b, H = b_OI.double(), H_II.double()
    rows_O, columns_I = b.new_ones(len(b)), b.new_ones(len(H))
    for _ in range(rounds):
        mean, variance = posterior(b, H, precision, rows_O, columns_I)
        energy = mean.square() + variance
        if rule == "svd":
            rows_O, columns_I = leading_pair(energy)
        else:
            rows_O, columns_I = alternating(energy, rows_O, columns_I)
        rows_O, columns_I = kept_alive(rows_O), kept_alive(columns_I)
    mean, _ = posterior(b, H, precision, rows_O, columns_I)
    return Switches(rows_O, columns_I, mean)


def posterior(
    b_OI: Tensor, H_II: Tensor, precision: float, rows_O: Tensor, columns_I: Tensor
) -> tuple[Tensor, Tensor]:
    """Means and variances [O, I] of the weight under these switches."""
    root_I = columns_I.sqrt()
    spectrum_K, V_IK = torch.linalg.eigh(root_I[:, None] * H_II * root_I)
    gain_OK = 1 / (precision * spectrum_K.clamp(min=0) + 1 / rows_O[:, None])
    mean = (precision * (b_OI * root_I) @ V_IK * gain_OK) @ V_IK.T * root_I
    variance = (gain_OK @ V_IK.square().T) * columns_I
    return mean, variance


def alternating(energy_OI: Tensor, rows_O: Tensor, columns_I: Tensor) -> tuple[Tensor, Tensor]:
    """The M step of EM: each switch is the mean energy in units of the other's."""
    for _ in range(INNER_ROUNDS):
        rows_O = (energy_OI / columns_I).mean(1)
        columns_I = (energy_OI / rows_O[:, None]).mean(0)
    return rows_O * columns_I.mean(), columns_I / columns_I.mean()


def leading_pair(energy_OI: Tensor) -> tuple[Tensor, Tensor]:
    """r and c with r c^T nearest to the energies; both positive, because the energies are."""
    U, S, Vh = torch.linalg.svd(energy_OI, full_matrices=False)
    rows_O, columns_I = U[:, 0].abs() * S[0], Vh[0].abs()
    return rows_O * columns_I.mean(), columns_I / columns_I.mean()


def kept_alive(switches: Tensor) -> Tensor:
    """No switch falls so low that its inverse is not finite."""
    return switches.clamp(min=SMALLEST * float(switches.max()) or SMALLEST)
