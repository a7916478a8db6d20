"""BDWP: N:M weights in the forward pass and, with a mask of their own, in the backward pass.

Paper:   Fang, Sun, Zhou, Wang, "Efficient N:M Sparse DNN Training Using Algorithm, Architecture,
         and Dataflow Co-Design", 2023 (bidirectional weight pruning).
Idea:    Hardware saves work only where the pattern runs along the dimension that a product sums
         over: the inputs in y = x W^T, the outputs in dX = g W.  So one dense master weight has two
         masks, and two of the three products of a step are sparse.  The gradient of the inputs is
         then that of another network, which training stands at moderate sparsity.

Equations -> code
    y  = x (W . Mf)^T        Mf: N of M along the inputs       BothWays.forward
    dX = g (W . Mb)          Mb: N of M along the outputs      BothWays.backward
    dW = g^T x               dense, for the dense master       BothWays.backward
    dW += decay (1 - Mf) . W                                   after_backward (SR-STE's term)
    3 / (1 + 2 N / M)                                          ideal_step_speedup
Shapes:  x [..., I], W [O, I], g [..., O].
Cost:    two masks per step (``refresh``: every so many steps), nothing else.
Differs from the paper:
    1. Masks are multiplied in: on CPU and GPU this trains no faster than the dense model.  The
       paper's speed is an FPGA's; ``ideal_step_speedup`` is a count of products, no measurement.
    2. Embedding and head stay dense because they are outside the blocks, as do norms.
    3. decay is 0 as in the paper; ``srste`` is the recipe that has it.
Raises:  TrainingError for a format that is not N:M; FormatError for a shape it does not divide.
Checked: products against the three formulas; the held-out loss against masks in the forward pass
         alone; tests/claims/test_training.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from blockwright.errors import TrainingError
from blockwright.training.masked import MaskedMatrix, masked_format, pattern_of
from blockwright.training.recipe import Moment, Place, TrainedMatrix, TrainingRecipe
from blockwright.types import MaskedFormat


@dataclass(frozen=True, kw_only=True)
class Bdwp(TrainingRecipe):
    """``bdwp@format=sparse2of4``"""

    format: str = "sparse2of4"
    refresh: int = 1
    """Steps between two choices of the masks."""
    decay: float = 0.0
    """Pull of pruned weights to zero, as a part of their gradient."""

    paper: ClassVar[str] = (
        "Fang, Sun, Zhou, Wang: Efficient N:M Sparse DNN Training Using Algorithm, Architecture,"
        " and Dataflow Co-Design, 2023"
    )

    def __post_init__(self) -> None:
        pattern_of("bdwp", self.masked)
        if self.refresh < 1 or self.decay < 0:
            raise TrainingError(
                f"recipe bdwp: refresh {self.refresh} and decay {self.decay:g}: give a refresh of 1"
                " step or more and a decay of 0 or more"
            )

    @property
    def masked(self) -> MaskedFormat:
        """The format of the forward pass."""
        return masked_format("bdwp", self.format)

    def matrix(self, linear: nn.Linear, place: Place) -> TrainedMatrix:
        return BdwpMatrix(linear, place, self.masked, self)


class BdwpMatrix(MaskedMatrix):
    """A dense master weight with a mask for each direction."""

    backward_OI: Tensor  # noqa: N815 - shape suffix
    """bool [O, I]: N of M consecutive outputs"""

    def __init__(self, linear: nn.Linear, place: Place, format: MaskedFormat, recipe: Bdwp) -> None:
        super().__init__(linear, place, format)
        turned = linear.in_features, linear.out_features
        format.check_structure(turned, f"{place.name}, whose outputs are inputs backward")
        self.recipe = recipe
        self.register_buffer("backward_OI", torch.ones_like(self.mask_OI))

    def choose_mask(self) -> None:
        super().choose_mask()
        magnitude_IO = self.weight.detach().abs().T.contiguous()
        self.backward_OI.copy_(self.format.best_mask(magnitude_IO).T)

    def before_step(self, moment: Moment) -> None:
        if moment.step % self.recipe.refresh == 0:
            self.choose_mask()

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        y = both_ways(x, self.weight, self.mask_OI, self.backward_OI)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def after_backward(self, moment: Moment) -> None:
        if self.recipe.decay and self.weight.grad is not None:
            self.weight.grad.add_(self.weight * ~self.mask_OI, alpha=self.recipe.decay)

    def finish(self) -> None:
        self.choose_mask()
        self.apply_mask()


class BothWays(torch.autograd.Function):
    """The product whose two directions see two masks; computed in the dtype of x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W_OI: Tensor, forward_OI: Tensor, backward_OI: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, W_OI, backward_OI)
        return x @ (W_OI * forward_OI).to(x.dtype).T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, W_OI, backward_OI = ctx.saved_tensors
        (g,) = gradients
        dX = g @ (W_OI * backward_OI).to(g.dtype)
        dW = g.flatten(0, -2).T @ x.flatten(0, -2)
        return dX, dW.to(W_OI.dtype), None, None


def both_ways(x: Tensor, W_OI: Tensor, forward_OI: Tensor, backward_OI: Tensor) -> Tensor:
    """x (W . Mf)^T, whose gradient towards x is g (W . Mb)."""
    y: Tensor = BothWays.apply(x, W_OI, forward_OI, backward_OI)  # type: ignore[no-untyped-call]
    return y


def ideal_step_speedup(n: int, m: int) -> float:
    """A model, not a measurement: products of a dense step over those of a step where the forward
    pass and the gradient of the inputs are N:M and the gradient of the weight is dense.
    """
    return 3 / (1 + 2 * n / m)


RECIPE = Bdwp
