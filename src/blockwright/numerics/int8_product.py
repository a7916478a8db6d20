"""Products of 8-bit integers: inputs rounded token by token, multiplied with rows of integers.

    x_hat = s_x q,  q = round(x / s_x) in -127 .. 127,  s_x = max |x| / 127 of the token
    y = s_x s_w (q W_q^T), the product in brackets exact in int32

Paper:   Dettmers, Lewis, Belkada, Zettlemoyer, "LLM.int8(): 8-bit Matrix Multiplication for
         Transformers at Scale", NeurIPS 2022, Eq. (4) (vector-wise quantization).
Shapes:  T tokens, I in features, O out features.
Cost:    int8 multiply-adds: on a CPU with VNNI or AMX, and on CUDA, faster than bfloat16; other
         CPUs have no fast path, and whether it is one is for the machine profile to time.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

TOP = 127
"""-128 is not used: every code has its negative."""
MOST_INPUTS = (2**31 - 1) // (TOP * TOP)
"""More inputs could overflow int32."""


def round_tokens(x_TI: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes [T, I] and fp32 scales [T, 1]; a token of zeros has scale 1."""
    x = x_TI.float()
    scale = x.abs().amax(1, keepdim=True) / TOP
    scale = torch.where(scale > 0, scale, 1.0)
    return torch.div(x, scale).round_().clamp_(-TOP, TOP).to(torch.int8), scale


def integer_product(codes_TI: Tensor, W_OI: Tensor) -> Tensor:
    """q W^T of int8 codes, int32 [T, O], exact."""
    return torch._int_mm(codes_TI, W_OI.t())


def reference(codes_TI: Tensor, W_OI: Tensor) -> Tensor:
    """The same product in 64-bit integers."""
    return (codes_TI.long() @ W_OI.long().t()).int()


@cache
def multiplies_integers(device: str = "cpu") -> bool:
    """Whether this build of PyTorch multiplies int8 matrices there, and right."""
    generator = torch.Generator().manual_seed(0)
    codes, W = (
        torch.randint(-TOP, TOP + 1, shape, generator=generator).to(torch.int8)
        for shape in ((3, 40), (24, 40))
    )
    try:
        found = integer_product(codes.to(device), W.to(device)).cpu()
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return torch.equal(found, reference(codes, W))
