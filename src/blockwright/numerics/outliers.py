"""Which of many values are outliers: coarsely by quartiles, then at the widest gap.

Paper:   Ding et al., "CBQ: Cross-Block Quantization for Large Language Models", ICLR 2025,
         coarse-to-fine pre-processing (CFP), Algorithm 1.
Idea:    All that is far beyond the upper quartile may be an outlier.  Among these, sorted, the cut
         is best where the outliers are far from what is reserved and what is reserved lies close
         together.

    coarse   T = Q3 + 1.5 (Q3 - Q1),  candidates O = {v > T}
    fine     max over cuts of O into reserved | outliers of
             (min outliers - max reserved)^2 - Var(reserved)
"""

from __future__ import annotations

import torch
from torch import Tensor

SPREAD = 1.5
"""Quartile ranges beyond the upper quartile where candidates begin."""


def outlier_bound(values: Tensor) -> float:
    """Largest value that is no outlier; infinity where there are none.

    ``values``: magnitudes, of any shape.
    """
    ordered = values.flatten().double().sort().values
    if len(ordered) < 4:
        return float("inf")
    lower, upper = (ordered[int(q * (len(ordered) - 1))] for q in (0.25, 0.75))
    candidates = ordered[ordered > upper + SPREAD * (upper - lower)]
    if len(candidates) < 2:
        return float("inf")
    reserved, outliers = candidates[:-1], candidates[1:]
    count = torch.arange(1, len(candidates), dtype=torch.float64)
    mean = reserved.cumsum(0) / count
    variance = (reserved.square().cumsum(0) / count - mean.square()).clamp(min=0)
    merit = (outliers - reserved).square() - variance
    best = int(merit.argmax())
    return float(reserved[best]) if merit[best] > 0 else float("inf")


def largest_inputs(absmax_I: Tensor, count: int) -> Tensor:
    """int64 [K], rising: the inputs of largest magnitude; equal ones from the left."""
    return absmax_I.argsort(descending=True, stable=True)[:count].sort().values
