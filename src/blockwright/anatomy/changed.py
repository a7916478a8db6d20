"""A block with something else in it, for trials."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


class With(nn.Module):
    """A block called with other parameters."""

    def __init__(self, block: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._block, self._tensors = block, dict(tensors)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return functional_call(self._block, self._tensors, args, kwargs)


def copied(block: nn.Module) -> nn.Module:
    """A copy whose modules can be replaced; parameters and configs are shared."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in block.parameters()}
    shared |= {id(m.config): m.config for m in block.modules() if hasattr(m, "config")}
    return copy.deepcopy(block, shared)
