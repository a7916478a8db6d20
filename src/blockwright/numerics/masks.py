"""Masks: which weights stay, by score, in numbers that are exact.

Idea:    A format fixes how many weights stay among how many; a method fixes the scores.  Ties go to
         the lowest index, so that the same scores give the same mask on every machine.

Shapes:  scores [O, J] -> bool [O, J], True = kept.
Raises:  NumericalError for a score that is NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blockwright.errors import NumericalError


def keep_per_row(score_OJ: Tensor, kept: int) -> Tensor:
    """The ``kept`` largest scores of every row."""
    if torch.isnan(score_OJ).any():
        raise NumericalError("a score is not a number: the weight or the inputs are not finite")
    order = torch.sort(score_OJ, dim=-1, descending=True, stable=True).indices
    mask = torch.zeros(score_OJ.shape, dtype=torch.bool, device=score_OJ.device)
    return mask.scatter_(-1, order[..., :kept], True)


def keep_n_of_m(score_OJ: Tensor, n: int, m: int) -> Tensor:
    """The ``n`` largest of every ``m`` consecutive scores; raises ``ValueError`` for a rest."""
    if score_OJ.shape[-1] % m:
        raise ValueError(f"{score_OJ.shape[-1]} inputs are not whole groups of {m}")
    return keep_per_row(score_OJ.reshape(-1, m), n).view(score_OJ.shape)


def keep_units(score_OJ: Tensor, kept: int, rows: int, columns: int) -> Tensor:
    """The ``kept`` units of ``rows`` x ``columns`` in every panel of ``rows`` whose squared scores
    add up to most; the last panel may have fewer rows.  Raises ``ValueError`` for a rest.
    """
    out_features, inputs = score_OJ.shape
    if inputs % columns:
        raise ValueError(f"{inputs} inputs are not whole units of {columns}")
    padded = torch.nn.functional.pad(score_OJ.square(), (0, 0, 0, -out_features % rows))
    cost_PU = padded.view(-1, rows, inputs // columns, columns).sum((1, 3))
    return spread_units(keep_per_row(cost_PU, kept), rows, columns)[:out_features]


def spread_units(mask_PU: Tensor, rows: int, columns: int) -> Tensor:
    """The mask [P rows, U columns] of a mask of units."""
    return mask_PU.repeat_interleave(rows, 0).repeat_interleave(columns, 1)


def keep_in_matrix(score_OJ: Tensor, kept: int) -> Tensor:
    """The ``kept`` largest scores of the whole matrix: rows may keep unequal numbers."""
    return keep_per_row(score_OJ.reshape(1, -1), kept).view(score_OJ.shape)


def kept_columns(mask_OJ: Tensor, kept: int) -> Tensor:
    """int64 [O, K]: the kept columns of every row, rising; each row keeps ``kept``."""
    return mask_OJ.nonzero()[:, 1].view(len(mask_OJ), kept)
