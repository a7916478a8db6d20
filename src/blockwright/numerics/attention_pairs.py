"""Fewer dimensions inside the heads of attention: of values and outputs, of queries and keys.

Paper:   Lin, Gao, Smith, Patel, Tuli, Shen, Jin, Hsu, "MoDeGPT: Modular Decomposition for Large
         Language Model Compression", ICLR 2025 (its second and third modules).
Idea:    Between values and outputs a head is one product of two matrices, so its best r dimensions
         are those of a weighted singular value decomposition.  Between queries and keys there is a
         rotation by position, so dimensions cannot be mixed: those stay that are large in both.

Equations -> code
    U S Z^T = svd(C^1/2 Wv^T), U2 S2 V2^T = svd(S Z^T Wo^T)      value_output, type III
    Wv' = (C^-1/2 U U2_r)^T,  Wo' = V2_r S2_r
    s_i = sqrt(E[q_i^2] E[k_i^2]), summed over heads and pairs   query_key_scores, type II
Shapes:  I inputs of the attention, D dimensions of a head, O outputs, H query and G key-value
         heads.
Units:   the squared error of what heads give before they are mixed by attention: the sum of the
         squared singular values S2 that are dropped.
Differs: C is floored at 1e-6 of its mean eigenvalue; everything is computed in double precision.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOOR = 1e-6
"""Least eigenvalue of a moment, as a fraction of the mean."""


def value_output(
    C_II: Tensor, Wv_DI: Tensor, Wo_OD: Tensor, rank: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Wv' [rank, I], Wo' [O, rank], and all singular values [min(D, O)], of one value head and all
    that read it: their output matrices stand under each other in ``Wo_OD``.
    """
    values_I, vectors_II = torch.linalg.eigh(C_II.double())
    root_I = values_I.clamp(min=FLOOR * float(values_I.mean())).sqrt()
    U, S, Zt = torch.linalg.svd(
        (vectors_II * root_I) @ (vectors_II.T @ Wv_DI.double().T), full_matrices=False
    )
    U2, S2, V2t = torch.linalg.svd(S[:, None] * (Zt @ Wo_OD.double().T), full_matrices=False)
    inverse_II = (vectors_II / root_I) @ vectors_II.T
    Wv = (inverse_II @ (U @ U2[:, :rank])).T
    Wo = (S2[:rank, None] * V2t[:rank]).T
    return Wv, Wo, S2


def query_key_scores(
    C_II: Tensor, Wq_HDI: Tensor, Wk_GDI: Tensor, pairs: Sequence[Sequence[int]]
) -> Tensor:
    """Score of every unit of dimensions [units]: ``pairs`` lists the dimensions of each, which a
    rotation mixes; one set of units for all heads.  Query head h reads key head h // (H / G).
    """
    C = C_II.double()
    q_HD = ((Wq_HDI.double() @ C) * Wq_HDI.double()).sum(-1)
    k_GD = ((Wk_GDI.double() @ C) * Wk_GDI.double()).sum(-1)
    k_HD = k_GD.repeat_interleave(len(q_HD) // len(k_GD), dim=0)
    scores = [(q_HD[:, list(p)].sum(1) * k_HD[:, list(p)].sum(1)).sqrt().sum() for p in pairs]
    return torch.stack(scores)


def largest_units(scores: Tensor, units: Sequence[Sequence[int]], dims: int) -> tuple[int, ...]:
    """``dims`` dimensions in whole units, those of largest score for their size, rising; what is
    left over by units of several is given to smaller ones.
    """
    sizes = torch.tensor([len(unit) for unit in units])
    order = (scores.cpu() / sizes).sort(descending=True, stable=True).indices.tolist()
    kept: list[int] = []
    for place in order:
        if len(kept) + len(units[place]) <= dims:
            kept += units[place]
    return tuple(sorted(kept))
