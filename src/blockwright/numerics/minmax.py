"""Codes between the least and the largest value of a group, for numbers made while a model runs.

    x_hat = low + scale code,   scale = (high - low) / (2^bits - 1),   code = round((x-low) / scale)

Idea:    Keys and values are not centred: a channel can be far from zero and vary little.  So the
         range need not hold zero, as that of weights does.  ``low`` is one of the numbers, exact in
         their dtype; ``scale`` is rounded to that dtype before codes are computed.
Shapes:  x [..., J] in groups of J -> codes uint8 [..., J], low and scale [...] in the dtype of x.
Laws:    a group of one value is exact; |x_hat - x| <= scale / 2, up to the rounding of scale.
Needs:   finite numbers whose range is finite in their dtype; nothing checks that here.
"""

from __future__ import annotations

import torch
from torch import Tensor


def encode_minmax(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, low and scale of groups along the last axis."""
    low, high = x.aminmax(dim=-1)
    top = (1 << bits) - 1
    scale = ((high.float() - low.float()) / top).to(x.dtype)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    above = x.float() - low.float().unsqueeze(-1)
    codes = above.div_(scale.float().unsqueeze(-1)).round_().clamp_(0, top)
    return codes.to(torch.uint8), low, scale


def decode_minmax(codes: Tensor, low: Tensor, scale: Tensor) -> Tensor:
    """Values of codes, computed in fp32, in the dtype of ``low``."""
    values = codes.float().mul_(scale.float().unsqueeze(-1)).add_(low.float().unsqueeze(-1))
    return values.to(low.dtype)
