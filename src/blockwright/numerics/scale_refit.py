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
