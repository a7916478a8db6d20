"""Whether a tensor holds NaN or infinity, without a copy of it."""

from __future__ import annotations

import torch
from torch import Tensor


def all_finite(values: Tensor) -> bool:
    """No NaN and no infinity, in one pass without a temporary; an empty tensor is finite."""
    if values.numel() == 0:
        return True
    low, high = torch.aminmax(values)  # NaN anywhere makes both NaN
    return bool(torch.isfinite(low) & torch.isfinite(high))
