"""Swaps in a mask: pairs of a pruned and a kept weight change places while the error falls.

    E = 1/2 sum_r (w_r . x) H (w_r . x)^T,  x = 1 where pruned; rows r of a panel share x

Paper:   "Scalable iterative pruning of large language and vision models using block coordinate
         descent", 2024 (iCBS): a small block of the mask's bits, a quadratic binary problem on it
         at a fixed number of ones, and on to the next block.
Idea:    Restoring weight i takes w_i x_i out of the error, pruning j adds it, and their products
         with the rest and with each other are known from H: the change of E is exact.

Equations -> code     q = H (w . x), a_i = sum_r w_ri q_ri, K_ij = H_ij sum_r w_ri w_rj
    single moves   restore i: K_ii / 2 - a_i,  prune j: K_jj / 2 + a_j     move_costs
    a pair         dE = both - K_ij                                        best_swaps
    the block      the C moves of least cost, or the best of whole patterns    block_of
Shapes:  P panels of R rows, I in features, C columns of a block, G patterns of M inputs.
Cost:    a pass O(O I^2 + O C^3), memory a batch of C x C tables.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from blockwright.numerics.block_descent import variable_block

BLOCK = 64
"""Columns of a block, half of them pruned."""
BATCH_ELEMENTS = 1 << 23
"""Elements of the tables of a batch of panels: 32 MiB of fp32."""
TOLERANCE = 1e-6
"""Swaps that lower the error of a panel by less than this share of it are left."""


@dataclass(frozen=True)
class Swaps:
    """The mask problem of one weight; ``pattern`` = inputs whose number of kept ones is fixed, 0 =
    the whole row.
    """

    W_PRI: Tensor
    H_II: Tensor
    pattern: int

    def errors(self, pruned_PI: Tensor) -> Tensor:
        """2 E of every panel, [P]."""
        zeroed_PRI = self.W_PRI * pruned_PI[:, None]
        return ((zeroed_PRI @ self.H_II) * zeroed_PRI).sum((1, 2))

    def descend(self, pruned_PI: Tensor, passes: int) -> Tensor:
        """The mask after at most so many passes; panels without a better swap are left alone."""
        pruned_PI = pruned_PI.clone()
        open_P = torch.arange(len(pruned_PI), device=pruned_PI.device)
        most = max(self.pattern, 1) ** 2 * self.W_PRI.shape[2] if self.pattern else BLOCK**2
        for _ in range(passes):
            batches = open_P.split(max(1, BATCH_ELEMENTS // max(most, BLOCK**2)))
            changed = [self._improve(batch, pruned_PI) for batch in batches]
            open_P = open_P[torch.cat(changed)] if changed else open_P
            if not len(open_P):
                break
        return pruned_PI

    def _improve(self, panels: Tensor, pruned_PI: Tensor) -> Tensor:
        """Swaps inside one block of every panel, in place; bool: which panels changed."""
        W_PRI, x_PI = self.W_PRI[panels], pruned_PI[panels]
        zeroed_PRI = W_PRI * x_PI[:, None]
        q_PRI = zeroed_PRI @ self.H_II
        error_P = (q_PRI * zeroed_PRI).sum((1, 2)) / 2
        a_PI = (W_PRI * q_PRI).sum(1)
        columns_PC = self.block_of(W_PRI, a_PI, x_PI)
        W_PRC = W_PRI.gather(2, columns_PC[:, None].expand(-1, W_PRI.shape[1], -1))
        K_PCC = self.H_II[columns_PC[:, :, None], columns_PC[:, None, :]] * (W_PRC.mT @ W_PRC)
        x_PC, a_PC = x_PI.gather(1, columns_PC), a_PI.gather(1, columns_PC)
        pattern_PC = columns_PC // self.pattern if self.pattern else columns_PC * 0
        allowed_PCC = pattern_PC[:, :, None] == pattern_PC[:, None, :]
        found_PC = best_swaps(K_PCC, a_PC, x_PC, allowed_PCC, TOLERANCE * error_P)
        pruned_PI[panels] = x_PI.scatter(1, columns_PC, found_PC)
        return (found_PC != x_PC).any(1)

    def block_of(self, W_PRI: Tensor, a_PI: Tensor, x_PI: Tensor) -> Tensor:
        """int64 [P, C]: the columns whose moves cost least."""
        k_PI = self.H_II.diagonal() * W_PRI.square().sum(1)
        cost_PI = move_costs(k_PI, a_PI, x_PI)
        if self.pattern:
            return self._patterns(W_PRI, cost_PI, x_PI)
        pruned = int(x_PI[0].sum())
        half = min(BLOCK // 2, pruned, x_PI.shape[1] - pruned)
        halves = [
            variable_block(-cost_PI.masked_fill(~among_PI, torch.inf), half)
            for among_PI in (x_PI, ~x_PI)
        ]
        return torch.cat(halves, 1)

    def _patterns(self, W_PRI: Tensor, cost_PI: Tensor, x_PI: Tensor) -> Tensor:
        """The columns of the patterns with the best pairs."""
        M, (P, R, I) = self.pattern, W_PRI.shape  # noqa: E741
        diagonal = torch.arange(I, device=W_PRI.device).view(-1, M)
        H_GMM = self.H_II[diagonal[:, :, None], diagonal[:, None, :]]
        W_PGRM = W_PRI.view(P, R, -1, M).transpose(1, 2)
        K_PGMM = H_GMM * (W_PGRM.mT @ W_PGRM)
        x_PGM, cost_PGM = x_PI.view(P, -1, M), cost_PI.view(P, -1, M)
        pair_PGMM = cost_PGM[..., :, None] + cost_PGM[..., None, :] - K_PGMM
        pair_PGMM.masked_fill_(~(x_PGM[..., :, None] & ~x_PGM[..., None, :]), torch.inf)
        count = min(max(BLOCK // M, 1), I // M)
        groups_PG = variable_block(-pair_PGMM.amin((2, 3)), count)
        places = torch.arange(M, device=W_PRI.device)
        return (groups_PG[:, :, None] * M + places).view(P, -1)


def move_costs(k_PI: Tensor, a_PI: Tensor, x_PI: Tensor) -> Tensor:
    """Change of E when one bit flips alone: [P, I]."""
    return k_PI / 2 + torch.where(x_PI, -a_PI, a_PI)


def best_swaps(
    K_PCC: Tensor, a_PC: Tensor, x_PC: Tensor, allowed_PCC: Tensor, least_P: Tensor
) -> Tensor:
    """x [P, C] after the best swap of every panel, again and again, while one lowers E by
    ``least`` or more.
    """
    k_PC = K_PCC.diagonal(dim1=1, dim2=2)
    panels = torch.arange(len(x_PC), device=x_PC.device)
    C = x_PC.shape[1]
    x_PC, a_PC = x_PC.clone(), a_PC.clone()
    for _ in range(C):
        cost_PC = move_costs(k_PC, a_PC, x_PC)
        pair_PCC = cost_PC[:, :, None] + cost_PC[:, None, :] - K_PCC
        barred_PCC = ~(allowed_PCC & x_PC[:, :, None] & ~x_PC[:, None, :])
        change_P, at_P = pair_PCC.masked_fill_(barred_PCC, torch.inf).flatten(1).min(1)
        better_P = change_P < -least_P
        if not better_P.any():
            break
        restored, pruned, here = (at_P // C)[better_P], (at_P % C)[better_P], panels[better_P]
        x_PC[here, restored], x_PC[here, pruned] = False, True
        a_PC[here] += K_PCC[here, pruned] - K_PCC[here, restored]
    return x_PC
