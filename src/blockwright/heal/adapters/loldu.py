"""loldu: the first pivots of a weight's own L D U decomposition are trained, nothing else.

Paper:   Shi, Wu, Xu, Xie, Zhu, "LoLDU: Low-Rank Adaptation via Lower-Diag-Upper Decomposition for
         Parameter-Efficient Fine-Tuning", 2024.
Idea:    W = P L D U.  The first R columns of P L and rows of U are fixed bases that come from the
         weight; R numbers say how much of each there is.  By far the fewest parameters of all
         adapters, and not much room.

Equations -> code     W = W0 + s P L_R diag(z) U_R,   W0 = W - s P L_R diag(z0) U_R
    P, L, U with unit diagonals, D         unit_factors
    what is added                          Pivots: s P L_R diag(z - z0) U_R
Shapes:  O out features, I in features, R rank; P = R.
Differs from the paper: pivots below 1e-6 of the largest are left out of the R.
Checked: tests/claims/test_adapters.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from blockwright.errors import CandidateError
from blockwright.heal.adapter import Family, Host
from blockwright.heal.sides import Extra, SideAdapter, SideAttachment

SMALLEST_PIVOT = 1e-6


class Pivots(Extra):
    """Bases, and the change of their weights."""

    left_OR: Tensor  # noqa: N815 - shape suffix
    right_RI: Tensor  # noqa: N815 - shape suffix

    def __init__(self, left_OR: Tensor, right_RI: Tensor) -> None:
        super().__init__()
        self.register_buffer("left_OR", left_OR)
        self.register_buffer("right_RI", right_RI)
        self.change_R = nn.Parameter(torch.zeros(left_OR.shape[1]))

    def forward(self, x: Tensor) -> Tensor:
        return ((x @ self.right_RI.T) * self.change_R) @ self.left_OR.T

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.left_OR * self.change_R, self.right_RI


def unit_factors(W_OI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """P L [O, K] with unit columns in its pivots, D [K], U [K, I] with a unit diagonal."""
    permutation, lower, upper = torch.linalg.lu(W_OI.double())
    pivots_K = upper.diagonal()
    safe_K = torch.where(pivots_K == 0, torch.ones_like(pivots_K), pivots_K)
    return permutation @ lower, pivots_K, upper / safe_K[:, None]


@dataclass(frozen=True, kw_only=True)
class LowerDiagonalUpper(SideAdapter):
    """Pivots alone."""

    paper: ClassVar[str] = "Shi et al., LoLDU, 2024"
    family: ClassVar[Family] = Family.REPARAMETERIZED

    rank: int = 64

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise CandidateError(f"option loldu@rank: got {self.rank}, needs 1 or more")

    def rank_at(self, host: Host) -> int:
        return min(self.rank, *host.shape)

    def attach_one(self, host: Host, draw: torch.Generator) -> SideAttachment:
        left_OK, pivots_K, right_KI = unit_factors(host.weight())
        size_K = pivots_K.abs()
        kept = (size_K > SMALLEST_PIVOT * size_K.max()).nonzero()[: self.rank, 0]
        scale = 1.0 / self.rank
        extra = Pivots((scale * left_OK[:, kept]).float(), right_KI[kept].float())
        pace = size_K[kept].square().mean().sqrt().item() * self.rank
        return SideAttachment(host, extra, {"change_R": pace})


ADAPTER = LowerDiagonalUpper
