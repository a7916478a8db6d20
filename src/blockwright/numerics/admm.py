"""ADMM: a weight that fits the data and one that obeys a constraint, pulled together.

    minimise  tr((V - W) Hd (V - W)^T)  over V = Z, Z allowed

Paper:   Boyd et al., "Distributed Optimization and Statistical Learning via the Alternating
         Direction Method of Multipliers", 2011, section 9 (non-convex sets: a heuristic); for
         pruning, Xie et al., "HollowNeRF", ICCV 2023.
Idea:    One copy answers to the error alone, the other is the nearest allowed point, and a dual
         variable adds up what still parts them.  Any projection will do: masks, grids, ranks.

Equations -> code     U dual, rho = share mean(diag Hd)
    V = (W Hd + rho (Z - U)) (Hd + rho I)^-1     admm
    Z = Proj(V + U),  U <- U + V - Z
Shapes:  O out features, I in features.
Cost:    time O(I^3) once and O(O I^2) per iteration, memory two Grams and five W.
Raises:  NumericalError when Hd cannot be factored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from blockwright.numerics.inverse_hessian import upper_factor

Projection = Callable[[Tensor], Tensor]
"""[O, I] -> the allowed weight next to it, a new tensor."""


def admm(W_OI: Tensor, Hd_II: Tensor, project: Projection, share: float) -> Iterator[Tensor]:
    """Z [O, I] after every iteration, without end; the first is the projection of W itself.

    ``share`` of the mean diagonal is rho.
    """
    rho = share * float(Hd_II.diagonal().mean())
    root_II = upper_factor(Hd_II, share)
    inverse_II = root_II.T @ root_II
    fit_OI = W_OI @ Hd_II
    V_OI, U_OI = W_OI, W_OI.new_zeros(W_OI.shape)
    while True:
        Z_OI = project(V_OI + U_OI)
        U_OI += V_OI - Z_OI
        yield Z_OI
        V_OI = (fit_OI + rho * (Z_OI - U_OI)) @ inverse_II
