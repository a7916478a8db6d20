"""The best scales of given codes, in closed form.

Paper:   Kim, Lee, Son, Kim, Jeon, "Two-Stage Grid Optimization for Group-wise Quantization of
         LLMs", ICASSP 2026, second stage; there by coordinate descent, here solved at once.
Idea:    W_hat is linear in its scales, so with codes c fixed the squared output error of a row is a
         parabola in its G scales: least squares with the Gram of the inputs.

    a_g = (c - zero_point) inside group g, 0 elsewhere       W_hat = sum_g s_g a_g
    A_gh = a_g H a_h^T,  b_g = a_g H w^T                     A s = b

Shapes:  O out features, I in features, G groups of a row, J inputs of a group.
Cost:    time O(O I^2), memory a chunk of rows with all inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from blockwright.numerics.grids import AffineGrid
from blockwright.numerics.ranges import SCALE_DTYPE

RIDGE = 1e-4
"""Pulls scales to what they were, relative to A's diagonal: groups whose codes are all zero points
have no best scale.
"""
LARGEST_CHANGE = 2.0
"""A scale that would change by more stays as it was."""
CHUNK_ELEMENTS = 1 << 22
"""Weights of the rows that are solved together."""


def refit_scales(W_OI: Tensor, codes_OI: Tensor, grid: AffineGrid, H_II: Tensor) -> AffineGrid:
    """The grid with the scales of least squared output error, rounded to their stored dtype."""
    rows = max(1, CHUNK_ELEMENTS // W_OI.shape[1])
    chunks = zip(
        W_OI.split(rows),
        codes_OI.split(rows),
        grid.scale.split(rows),
        grid.zero_point.split(rows),
        strict=True,
    )
    scale = torch.cat([_refit(W, codes, s, z, H_II) for W, codes, s, z in chunks])
    return replace(grid, scale=scale)


def fit_coefficients(
    bases_ROI: Sequence[Tensor], W_OI: Tensor, H_II: Tensor, start_OR: Tensor
) -> Tensor:
    """c [O, R] of least squared output error of W_hat = sum_r c_r B_r, row by row; B_r [O, I].

    A row without a best one, or of a base that is 0, keeps what it has in ``start_OR``.
    """
    P_ROI = [B_OI @ H_II for B_OI in bases_ROI]
    A_ORR = torch.stack([torch.stack([(P * B).sum(1) for B in bases_ROI], 1) for P in P_ROI], 1)
    b_OR = torch.stack([(P * W_OI).sum(1) for P in P_ROI], 1)
    ridge_OR = RIDGE * A_ORR.diagonal(dim1=1, dim2=2)
    ridge_OR = ridge_OR.clamp(min=torch.finfo(torch.float32).tiny)
    A_ORR.diagonal(dim1=1, dim2=2).add_(ridge_OR)
    b_OR += ridge_OR * start_OR
    found_OR, info_O = torch.linalg.solve_ex(A_ORR, b_OR)
    solved_O = (info_O == 0) & torch.isfinite(found_OR).all(1)
    return torch.where(solved_O[:, None], found_OR, start_OR)


def following_gain(W_OI: Tensor, W_hat_OI: Tensor, H_II: Tensor) -> Tensor:
    """What makes outputs follow the original's one to one, E[gain y_hat y] = E[y^2], [O].

    Least squares leaves E[y_hat y] smaller.  Between 0.8 and 1.25; 1 where nothing can follow.
    """
    P_OI = W_OI @ H_II
    wanted_O, given_O = (P_OI * W_OI).sum(1), (P_OI * W_hat_OI).sum(1)
    return torch.where(given_O > 0, wanted_O / given_O, 1.0).clamp(0.8, 1.25)


def _refit(W_OI: Tensor, codes_OI: Tensor, s_OG: Tensor, z_OG: Tensor, H_II: Tensor) -> Tensor:
    G = s_OG.shape[1]
    a_OGJ = codes_OI.float().reshape(*s_OG.shape, -1) - z_OG.unsqueeze(-1)
    J = a_OGJ.shape[2]
    b_OG = ((W_OI @ H_II).view(a_OGJ.shape) * a_OGJ).sum(2)
    A_OGG = torch.stack(
        [
            ((a_OGJ[:, g] @ H_II[g * J : (g + 1) * J]).view(a_OGJ.shape) * a_OGJ).sum(2)
            for g in range(G)
        ],
        1,
    )
    ridge_OG = RIDGE * A_OGG.diagonal(dim1=1, dim2=2)
    ridge_OG = ridge_OG.clamp(min=torch.finfo(torch.float32).tiny)
    A_OGG.diagonal(dim1=1, dim2=2).add_(ridge_OG)
    b_OG += ridge_OG * s_OG
    found, info = torch.linalg.solve_ex(A_OGG, b_OG)
    found = found.to(SCALE_DTYPE).float()
    solved = (info == 0)[:, None] & (found * LARGEST_CHANGE > s_OG)
    return torch.where(solved & (found < s_OG * LARGEST_CHANGE), found, s_OG)
