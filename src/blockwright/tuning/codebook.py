"""A vector codebook that is trained by gradients, entry by entry or as one linear map.

    E = C A + b      C [K, D] frozen, A [D, D] = I and b [D] = 0 at first

Paper:   Zhu, Li, Xin, Xu, "Addressing Representation Collapse in Vector Quantized Models with One
         Linear Layer" (SimVQ), 2024, Eq. (5)-(7).
Idea:    Trained by themselves only the entries that are chosen move, and those that are not never
         will be.  Through one linear map every step moves all of them.

Shapes:  N vectors, D values of each, K entries.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blockwright.numerics.vectors import nearest
from blockwright.tuning.loop import BETAS


@torch.enable_grad()
def train_codebook(
    z_ND: Tensor,
    C_KD: Tensor,
    *,
    mapped: bool,
    steps: int,
    rate: float,
    generator: torch.Generator,
    batch: int = 2048,
    weight_ND: Tensor | None = None,
) -> Tensor:
    """E [K, D] after ``steps`` batches, each assigned anew, of mean weighted squared error.

    ``mapped``: E = C A + b with A and b trained; otherwise E itself.
    """
    A_DD = torch.eye(C_KD.shape[1], device=C_KD.device).requires_grad_()
    b_D = torch.zeros_like(C_KD[0]).requires_grad_()
    own_KD = C_KD.clone().requires_grad_()

    def codebook() -> Tensor:
        return C_KD @ A_DD + b_D if mapped else own_KD

    optimizer = torch.optim.Adam([A_DD, b_D] if mapped else [own_KD], lr=rate, betas=BETAS)
    for _ in range(steps):
        drawn = torch.randint(len(z_ND), (min(batch, len(z_ND)),), generator=generator)
        z_BD = z_ND[drawn.to(z_ND.device)]
        weight_BD = None if weight_ND is None else weight_ND[drawn.to(z_ND.device)]
        E_KD = codebook()
        error_BD = (E_KD[nearest(z_BD, E_KD.detach(), weight_BD)] - z_BD).square()
        loss = (error_BD if weight_BD is None else error_BD * weight_BD).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return codebook().detach()
