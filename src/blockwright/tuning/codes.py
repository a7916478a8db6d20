"""Codes that are trained: which of its neighbours every weight is rounded to.

    code = clip(round(start + offset), 0, top)      the rounding passes gradients through (STE)

Paper:   Cheng et al., "Optimize Weight Rounding via Signed Gradient Descent for the Quantization of
         LLMs" (AutoRound), 2023, for the offset that is trained; Chen et al., "EfficientQAT", 2024,
         for codes that may move by more than one step.
Idea:    A weight that lies near the middle between two codes costs little in either of them; the
         block's output says which is better beside all the others.  Offsets begin at codes that a
         solver found, not at the nearest: ``start`` lies between code and weight, inside the cell
         of the code, so that nothing changes before something is learned, and weights that the
         solver moved far from their nearest code are the first to move back.

Shapes:  O out features, I in features.  Units: code steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blockwright.types import StoredCodes

INSIDE = 0.49
"""Farthest from its code that a start may be."""


class TrainedCodes:
    """Codes with their trained offset (fp32, in code steps)."""

    def __init__(
        self, stored: StoredCodes, position_OI: Tensor, *, pull: float, pace: float
    ) -> None:
        """``position``: of the original weight, in code steps; ``pull``: share of the way from the
        code to it; ``pace``: learning rate, as a multiple of that of other tensors.
        """
        self.pace, self._pack, self._top = pace, stored.pack, stored.levels - 1
        codes = stored.codes_OI.float()
        self.start = codes + (pull * (position_OI - codes)).clamp(-INSIDE, INSIDE)
        self.offset = torch.zeros_like(self.start, requires_grad=True)

    def value(self) -> Tensor:
        """The codes as they would be stored, fp32, with a gradient to ``offset``."""
        exact = (self.start + self.offset).clamp(-0.5, self._top + 0.5)
        rounded = exact.detach().round().clamp(0, self._top)
        return exact + (rounded - exact).detach()

    def stored(self) -> Tensor:
        """The codes, packed."""
        return self._pack(self.value().detach().to(torch.uint8))
