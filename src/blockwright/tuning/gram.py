"""Trains what a linear's weight is made of against the Gram of its inputs, without data.

    L = tr(D H D^T),  D = W_hat - W        dL/dW_hat = 2 D H

One iteration costs one [O, I] @ [I, I] product.  ``unit``, the error of round-to-nearest at the
same bits, makes rates and regularizers transfer between layers: the loss is L O I / unit.

Shapes:  O out features, I in features.
Raises:  NumericalError when the start has no finite error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from blockwright.errors import NumericalError
from blockwright.tuning.loop import BETAS, falling

Weight = Callable[[], Tensor]
"""W_hat [O, I] of the current state."""


def gram_error(D_OI: Tensor, H_II: Tensor) -> Tensor:
    """tr(D H D^T) with a gradient to D, in one product; H is symmetric."""
    error: Tensor = _GramError.apply(D_OI, H_II)  # type: ignore[no-untyped-call]
    return error


class _GramError(torch.autograd.Function):
    """Keeps D H for the backward, where it is the gradient but for a factor of 2."""

    @staticmethod
    def forward(ctx: Any, D_OI: Tensor, H_II: Tensor) -> Tensor:
        product_OI = D_OI @ H_II
        ctx.save_for_backward(product_OI)
        return (product_OI * D_OI).sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (product_OI,) = ctx.saved_tensors
        return 2 * gradient * product_OI, None


@torch.enable_grad()
def tune_on_gram(
    weight: Weight,
    trained: Sequence[tuple[Tensor, float]],
    W_OI: Tensor,
    H_II: Tensor,
    *,
    unit: float,
    steps: int,
    checks: int = 8,
    judged: Weight | None = None,
    held_II: Tensor | None = None,
    extra_loss: Callable[[float], Tensor] | None = None,
) -> float:
    """Leave the best state in ``trained`` and return its error.

    ``trained``: leaves with their first learning rates; ``judged``: the weight that will be stored
    (``weight`` by default), asked at the start and ``checks`` times, by ``held_II``, the Gram of
    other inputs (``H_II`` by default); ``extra_loss``: of the progress 0..1, added while training.
    """
    optimizer = torch.optim.Adam(
        [{"params": [leaf], "lr": rate} for leaf, rate in trained], betas=BETAS
    )
    judge = _Judge(judged or weight, W_OI, H_II if held_II is None else held_II)
    best, kept = judge.error(), [leaf.detach().clone() for leaf, _ in trained]
    if not math.isfinite(best):
        raise NumericalError("the weight has no finite error before it is tuned")
    every = max(1, steps // max(1, checks))
    for step in range(1, steps + 1):
        loss = gram_error(weight() - W_OI, H_II) * (W_OI.numel() / unit)
        if extra_loss is not None:
            loss = loss + extra_loss(step / steps)
        if not torch.isfinite(loss):
            break
        for group, (_, rate) in zip(optimizer.param_groups, trained, strict=True):
            group["lr"] = rate * falling(step, steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % every == 0 or step == steps:
            now = judge.error()
            if now < best:
                best, kept = now, [leaf.detach().clone() for leaf, _ in trained]
    with torch.no_grad():
        for (leaf, _), value in zip(trained, kept, strict=True):
            leaf.copy_(value)
    return best


class _Judge:
    """The error of the weight that would be stored now."""

    def __init__(self, weight: Weight, W_OI: Tensor, H_II: Tensor) -> None:
        self._weight, self._W_OI, self._H_II = weight, W_OI, H_II

    @torch.no_grad()
    def error(self) -> float:
        return gram_error(self._weight() - self._W_OI, self._H_II).item()
