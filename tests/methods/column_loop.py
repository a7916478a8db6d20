"""The plain twin of GPTQ: column by column, shrinking the inverse Hessian, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from blockwright.types import GridFormat, GridSolution


def column_loop(
    W_OI: Tensor,
    H_II: Tensor,
    format: GridFormat,
    *,
    damping: float,
    act_order: bool,
    search: bool = False,
) -> GridSolution:
    """Eq. (2), (3) of the paper as they stand: no Cholesky, no tiles.

    After column j is fixed, the inverse Hessian of the others is inv(H) less the part that goes
    through j.  ``search``: ranges are searched by the diagonal of H.  Static groups with
    ``act_order``, otherwise groups fitted when reached.
    """
    W, H = W_OI.double().clone(), H_II.double()
    I = len(H)  # noqa: E741
    size = format.group_size or I
    inverse = torch.linalg.inv(H + damping * H.diagonal().mean() * torch.eye(I))
    order = torch.argsort(H_II.diagonal(), descending=True, stable=True).tolist()
    h = H_II.diagonal() if search else None
    grid = format.fit_grid(W_OI, search=search, importance_I=h)
    codes = torch.empty(W.shape, dtype=torch.uint8)
    for j in order if act_order else range(I):
        if not act_order and j % size == 0:
            group = slice(j, j + size)
            fitted = format.fit_grid(
                W[:, group].float(), search=search, importance_I=None if h is None else h[group]
            )
            grid = grid.replaced(group, fitted)
        column = slice(j, j + 1)
        codes[:, column] = grid.encode(W[:, column].float(), column)
        error = (W[:, column] - grid.decode(codes[:, column], column)) / inverse[j, j]
        W -= error * inverse[j]
        inverse -= torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return GridSolution(codes_OI=codes, grid=grid)
