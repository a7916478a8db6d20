"""How much the loss feels a weight: the trace of its Hessian, by probes or by moments.

Paper:   Yao et al., "HAWQ-V3: Dyadic Neural Network Quantization", ICML 2021, Eq. (8); Dong et al.,
         "HAWQ-V2", NeurIPS 2020, Algorithm 1 (Hutchinson's estimator).
Idea:    Omega = mean eigenvalue of a weight's Hessian times its squared change: one number per
         weight matrix, whichever way the change points.  Our own cost, 1/2 tr(G D H D^T), also
         knows the direction.

Equations -> code
    tr(Hess) = E[v^T Hess v], v = +-1          hutchinson_trace
    Hess ~ G (x) H: tr = sum(G) tr(H)          moment_trace
    1/2 tr / n |D|^2                           trace_cost
Shapes:  O out features, I in features.
Units:   loss in nats per token.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def hutchinson_trace(
    multiply: Callable[[Tensor], Tensor],
    shape: tuple[int, ...],
    *,
    generator: torch.Generator,
    most: int = 50,
    relative_error: float = 0.05,
) -> tuple[float, float]:
    """Trace of a symmetric matrix that ``multiply`` applies, and its standard error.

    Ends after ``most`` probes, or when the standard error is below its share of the mean.
    """
    found: list[float] = []
    while len(found) < most:
        v = torch.randint(0, 2, shape, generator=generator).float() * 2 - 1
        found.append(float((v * multiply(v)).sum(dtype=torch.float64)))
        if len(found) > 2 and _standard_error(found) <= relative_error * abs(_mean(found)):
            break
    return _mean(found), _standard_error(found)


def moment_trace(H_II: Tensor, G_O: Tensor) -> float:
    """The same from the moments of inputs and output gradients, as if these were independent."""
    return float(G_O.sum(dtype=torch.float64) * H_II.diagonal().sum(dtype=torch.float64))


def trace_cost(D_OI: Tensor, trace: float) -> float:
    """Loss that a change D is charged with: 1/2 mean eigenvalue |D|^2."""
    return trace / D_OI.numel() * float(D_OI.square().sum(dtype=torch.float64)) / 2


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _standard_error(values: list[float]) -> float:
    if len(values) < 2:
        return float("inf")
    mean = _mean(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return float((variance / len(values)) ** 0.5)
