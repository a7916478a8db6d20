"""Swaps in a mask: a pruned and a kept weight change places while the error falls.

    E = 1/2 sum_r (w_r . x) H (w_r . x)^T,  x = 1 where pruned; rows r of a panel share x

Paper:   Rosenberg et al., "Scalable iterative pruning of large language and vision models using
         block coordinate descent", 2024 (iCBS): a small block of the mask's bits, a quadratic
         binary problem on it at a fixed number of ones, and on to the next block.
Idea:    Restoring weight i takes w_i x_i out of the error, pruning j adds it, and their products
         with the rest and with each other are known from H: the change of E is exact.  What moves
         as one, some rows of some inputs, is a unit u.

Equations -> code     q = H (w . x), a_u = sum_ri w_ri q_ri, K_uv = sum_r w_ru H_uv w_rv^T
    single moves   restore u: K_uu / 2 - a_u,  prune v: K_vv / 2 + a_v     move_costs
    a pair         dE = both - K_uv                                        best_swaps
    the block      the moves of least cost, or the best of whole patterns  Swaps.block_of
Shapes:  P panels of R rows, I inputs in U units of C; B units of a block, G patterns of M inputs.
Cost:    a pass O(O I^2 + P B^3), memory a batch of tables.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from blockwright.numerics.block_descent import variable_block

BLOCK = 64
"""Inputs of a block, half of them pruned."""
BATCH_ELEMENTS = 1 << 23
"""Elements of the tables of a batch of panels: 32 MiB of fp32."""
TOLERANCE = 1e-6
"""Swaps that lower the error of a panel by less than this share of it are left."""


@dataclass(frozen=True, kw_only=True)
class Swaps:
    """The mask problem of one weight."""

    W_PRI: Tensor
    H_II: Tensor
    pattern: int = 0
    """Inputs whose number of kept ones is fixed; 0 = the whole row."""
    unit: int = 1
    """Consecutive inputs that are kept or pruned as one; 1 where there is a pattern."""

    def errors(self, pruned_PU: Tensor) -> Tensor:
        """2 E of every panel, [P]."""
        zeroed_PRI = self.W_PRI * self._inputs(pruned_PU)
        return ((zeroed_PRI @ self.H_II) * zeroed_PRI).sum((1, 2))

    def descend(self, pruned_PU: Tensor, passes: int) -> Tensor:
        """The mask after at most so many passes; panels without a better swap are left alone."""
        pruned_PU = pruned_PU.clone()
        open_P = torch.arange(len(pruned_PU), device=pruned_PU.device)
        table = max(BLOCK**2, self.pattern * self.W_PRI.shape[2])
        for _ in range(passes):
            batches = open_P.split(max(1, BATCH_ELEMENTS // table))
            open_P = open_P[torch.cat([self._improve(batch, pruned_PU) for batch in batches])]
            if not len(open_P):
                break
        return pruned_PU

    def _improve(self, panels: Tensor, pruned_PU: Tensor) -> Tensor:
        """Swaps inside one block of every panel, in place; bool: which panels changed."""
        W_PRI, x_PU = self.W_PRI[panels], pruned_PU[panels]
        zeroed_PRI = W_PRI * self._inputs(x_PU)
        q_PRI = zeroed_PRI @ self.H_II
        error_P = (q_PRI * zeroed_PRI).sum((1, 2)) / 2
        a_PU = (W_PRI * q_PRI).sum(1).view(*x_PU.shape, -1).sum(2)
        units_PB = self.block_of(W_PRI, a_PU, x_PU)
        K_PBB = self._products(W_PRI, units_PB)
        x_PB, a_PB = x_PU.gather(1, units_PB), a_PU.gather(1, units_PB)
        group_PB = units_PB // self.pattern if self.pattern else units_PB * 0
        allowed_PBB = group_PB[:, :, None] == group_PB[:, None, :]
        found_PB = best_swaps(K_PBB, a_PB, x_PB, allowed_PBB, TOLERANCE * error_P)
        pruned_PU[panels] = x_PU.scatter(1, units_PB, found_PB)
        return (found_PB != x_PB).any(1)

    def block_of(self, W_PRI: Tensor, a_PU: Tensor, x_PU: Tensor) -> Tensor:
        """int64 [P, B]: the units whose moves cost least."""
        if self.pattern:
            return self._patterns(W_PRI, a_PU, x_PU)
        cost_PU = move_costs(self._own(W_PRI), a_PU, x_PU)
        pruned = int(x_PU[0].sum())
        half = min(max(BLOCK // 2 // self.unit, 1), pruned, x_PU.shape[1] - pruned)
        halves = [
            variable_block(-cost_PU.masked_fill(~among_PU, torch.inf), half)
            for among_PU in (x_PU, ~x_PU)
        ]
        return torch.cat(halves, 1)

    def _patterns(self, W_PRI: Tensor, a_PI: Tensor, x_PI: Tensor) -> Tensor:
        """The inputs of the patterns with the best pairs."""
        M = self.pattern
        K_PGMM = self._blocks(W_PRI, M)
        x_PGM, a_PGM = (t.view(len(t), -1, M) for t in (x_PI, a_PI))
        cost_PGM = move_costs(K_PGMM.diagonal(dim1=2, dim2=3), a_PGM, x_PGM)
        pair_PGMM = cost_PGM[..., :, None] + cost_PGM[..., None, :] - K_PGMM
        pair_PGMM.masked_fill_(~(x_PGM[..., :, None] & ~x_PGM[..., None, :]), torch.inf)
        count = min(max(BLOCK // M, 1), x_PGM.shape[1])
        groups_PG = variable_block(-pair_PGMM.amin((2, 3)), count)
        places = torch.arange(M, device=W_PRI.device)
        return (groups_PG[:, :, None] * M + places).view(len(W_PRI), -1)

    def _inputs(self, x_PU: Tensor) -> Tensor:
        """[P, 1, I]"""
        return x_PU.repeat_interleave(self.unit, 1)[:, None]

    def _own(self, W_PRI: Tensor) -> Tensor:
        """K_uu [P, U]."""
        if self.unit == 1:
            return self.H_II.diagonal() * W_PRI.square().sum(1)
        return self._blocks(W_PRI, self.unit).sum((2, 3))

    def _blocks(self, W_PRI: Tensor, size: int) -> Tensor:
        """w_i H_ij w_j inside every ``size`` consecutive inputs, [P, I / size, size, size]."""
        inputs = torch.arange(W_PRI.shape[2], device=W_PRI.device).view(-1, size)
        H_GMM = self.H_II[inputs[:, :, None], inputs[:, None, :]]
        W_PGRM = W_PRI.view(*W_PRI.shape[:2], -1, size).transpose(1, 2)
        return H_GMM * (W_PGRM.mT @ W_PGRM)

    def _products(self, W_PRI: Tensor, units_PB: Tensor) -> Tensor:
        """K_uv [P, B, B] between the units of a block."""
        (P, B), C = units_PB.shape, self.unit
        places = torch.arange(C, device=W_PRI.device)
        inputs = (units_PB[:, :, None] * C + places).view(P, -1)
        W_PRB = W_PRI.gather(2, inputs[:, None].expand(-1, W_PRI.shape[1], -1))
        K = self.H_II[inputs[:, :, None], inputs[:, None, :]] * (W_PRB.mT @ W_PRB)
        return K.view(P, B, C, B, C).sum((2, 4))


def move_costs(k_PU: Tensor, a_PU: Tensor, x_PU: Tensor) -> Tensor:
    """Change of E when one bit flips alone: [P, U]."""
    return k_PU / 2 + torch.where(x_PU, -a_PU, a_PU)


def best_swaps(
    K_PBB: Tensor, a_PB: Tensor, x_PB: Tensor, allowed_PBB: Tensor, least_P: Tensor
) -> Tensor:
    """x [P, B] after the best swap of every panel, again and again, while one lowers E by
    ``least`` or more.
    """
    k_PB = K_PBB.diagonal(dim1=1, dim2=2)
    panels = torch.arange(len(x_PB), device=x_PB.device)
    size = x_PB.shape[1]
    x_PB, a_PB = x_PB.clone(), a_PB.clone()
    for _ in range(size):
        cost_PB = move_costs(k_PB, a_PB, x_PB)
        pair_PBB = cost_PB[:, :, None] + cost_PB[:, None, :] - K_PBB
        barred_PBB = ~(allowed_PBB & x_PB[:, :, None] & ~x_PB[:, None, :])
        change_P, at_P = pair_PBB.masked_fill_(barred_PBB, torch.inf).flatten(1).min(1)
        better_P = change_P < -least_P
        if not better_P.any():
            break
        restored, pruned, here = (at_P // size)[better_P], (at_P % size)[better_P], panels[better_P]
        x_PB[here, restored], x_PB[here, pruned] = False, True
        a_PB[here] += K_PBB[here, pruned] - K_PBB[here, restored]
    return x_PB
