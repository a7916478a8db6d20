"""Soft rounding: every element chooses between rounding down and up, at first by halves.

Idea:    Rounding every weight to its nearest value ignores that errors of one row add up in its
         output.  A relaxed choice h in [0, 1] per element is trained on the output error while a
         regularizer pulls it to 0 or 1.  Scales and zero points stay.
Paper:   Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020.

Equations -> code
    Eq. (22)   W_hat = scale (clip(floor(W / scale) + zero_point + h(V), 0, Q) - zero_point)
    Eq. (23)   h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1)
    Eq. (24)   regularizer = sum(1 - |2 h - 1|^beta), beta from 20 to 2
Shapes:  O out features, I in features, G groups of inputs per row.
Checked: 128 x 128 outlier layers, 800 steps, rate 0.03, regularizer times 3: held-out output error
         0.74 and 0.80 of round-to-nearest's at 3 bits (``tests/tuning/test_soft_rounding.py``).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

STRETCH, SHIFT = 1.2, 0.1
"""h reaches 0 and 1 at finite V: 1.2 sigmoid(V) - 0.1."""
FIRST_BETA, LAST_BETA = 20.0, 2.0
WARM_UP = 0.2
"""Share of the steps without regularizer."""


class SoftRounding:
    """The rounding of one weight; ``V`` is what is trained.  The start reproduces the weight where
    it is inside the range.
    """

    def __init__(self, W_OI: Tensor, scale_OG: Tensor, zero_point_OG: Tensor, levels: int) -> None:
        """``levels``: number of codes; scales and zero points are fixed."""
        self._shape = W_OI.shape
        self._scale = scale_OG.float().unsqueeze(-1)
        self._zero_point = zero_point_OG.float().unsqueeze(-1)
        self._top = levels - 1
        ratio = W_OI.float().view(*scale_OG.shape, -1) / self._scale
        self._floor = ratio.floor()
        share = (ratio - self._floor).view(self._shape)
        self.V = (-torch.log(STRETCH / (share + SHIFT) - 1)).requires_grad_()

    def share(self) -> Tensor:
        """h(V) [O, I]: 0 = down, 1 = up."""
        return (STRETCH * torch.sigmoid(self.V) - SHIFT).clamp(0, 1)

    def weight(self) -> Tensor:
        """W_hat [O, I] with a gradient to V."""
        return self._decoded(self.share())

    def rounded(self) -> Tensor:
        """W_hat [O, I] with every element decided."""
        return self._decoded((self.share() >= 0.5).float())

    def codes(self) -> Tensor:
        """uint8 [O, I], decided."""
        return self._code((self.share() >= 0.5).float()).to(torch.uint8).view(self._shape)

    def regularizer(self, progress: float) -> Tensor:
        """Pulls every element to 0 or 1, the harder the further training is (0..1)."""
        if progress <= WARM_UP:
            return self.V.new_zeros(())
        return (1 - (2 * self.share() - 1).abs().pow(beta_at(progress))).sum()

    def _code(self, share_OI: Tensor) -> Tensor:
        code = self._floor + self._zero_point + share_OI.view(self._floor.shape)
        return code.clamp(0, self._top)

    def _decoded(self, share_OI: Tensor) -> Tensor:
        return ((self._code(share_OI) - self._zero_point) * self._scale).view(self._shape)


def beta_at(progress: float) -> float:
    """Cosine from 20 at the end of the warm-up to 2 at the end."""
    done = (progress - WARM_UP) / (1 - WARM_UP)
    return LAST_BETA + (FIRST_BETA - LAST_BETA) * (1 + math.cos(math.pi * done)) / 2
