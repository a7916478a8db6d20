"""Packed modules as functions of what is stored in them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from blockwright.types import PackedLinear


def depended_on(module: PackedLinear) -> list[str]:
    """Names of the stored floating-point tensors, bias left out, that the weight depends on."""
    names = [name for name in module.stored_names if name != "bias"]
    held = {name: module.stored_tensor(name) for name in names}
    leaves = {
        name: tensor.detach().float().requires_grad_()
        for name, tensor in held.items()
        if tensor.is_floating_point()
    }
    if not leaves:
        return []
    weight = weight_of_tensors(module, leaves)
    weight_of_tensors(module, held)
    if not weight.requires_grad:
        return []
    total = weight.float().sum()
    gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return [name for name, found in zip(leaves, gradients, strict=True) if found is not None]


def weight_of_tensors(module: PackedLinear, tensors: Mapping[str, Tensor]) -> Tensor:
    """The weight [out, in] once some stored tensors were replaced; they stay in place."""
    for name, tensor in tensors.items():
        module.replace_stored(name, tensor)
    return module.differentiable_weight()
