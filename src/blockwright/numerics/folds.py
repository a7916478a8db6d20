"""Scale folds: x -> x / t in front of linears that multiply W t, per input feature.

Whatever makes x takes in 1 / t.  A norm's output is (offset + p) n per feature, with p its weight
and n the normalised input; offset is 0, or 1 where a model stores the distance to 1.  A bias is the
same with offset 0.  The new parameter is rounded to its stored dtype, so the scale that really
stands is

    t = (offset + p) / (offset + round((offset + p) / t - offset))

and weights are multiplied by that one: what is solved is what is loaded.

Shapes:  I features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Folded:
    """Parameters that have taken in 1 / t, in their stored dtype, and the t that really stands."""

    t_I: Tensor  # noqa: N815 - shape suffix
    """fp32 [I], positive"""
    parameters: tuple[Tensor, ...]
    """[I] each"""


def fold_scale(parameters: Sequence[Tensor], offsets: Sequence[float], t_I: Tensor) -> Folded:
    """Divide what ``parameters`` [I] give by ``t_I``.

    The first one's rounding decides t: it is exact.  Others (a bias) are off by their own rounding.
    Features whose first parameter cannot be divided (it is zero, or would become so) keep t = 1.
    """
    first, offset = parameters[0].float(), offsets[0]
    divided = (((offset + first) / t_I) - offset).to(parameters[0].dtype)
    true_I = (offset + first) / (offset + divided.float())
    possible = torch.isfinite(true_I) & (true_I > 0)
    true_I = torch.where(possible, true_I, torch.ones_like(true_I))
    folded = [torch.where(possible, divided, parameters[0])]
    for parameter, its_offset in zip(parameters[1:], offsets[1:], strict=True):
        divided = ((its_offset + parameter.float()) / true_I - its_offset).to(parameter.dtype)
        folded.append(divided)
    return Folded(true_I, tuple(folded))
