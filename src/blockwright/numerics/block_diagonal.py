"""Products with block-diagonal matrices, stored as their blocks.

Shapes:  A [J, b, b] stands for [J b, J b] with blocks A_j on the diagonal.
Cost:    time 2 b per element of the other factor.
"""

from __future__ import annotations

from torch import Tensor


def left_times(A_JBB: Tensor, W_OI: Tensor) -> Tensor:
    """A W [O, I], O = J b."""
    blocks, size, _ = A_JBB.shape
    return (A_JBB @ W_OI.view(blocks, size, -1)).view(W_OI.shape)


def times_right(W_OI: Tensor, B_KBB: Tensor) -> Tensor:
    """W B [..., I], I = K b."""
    blocks, size, _ = B_KBB.shape
    W_KOB = W_OI.reshape(-1, blocks, size).transpose(0, 1)
    return (W_KOB @ B_KBB).transpose(0, 1).reshape(W_OI.shape)


def row_blocks_product(L_OI: Tensor, R_OI: Tensor, size: int) -> Tensor:
    """L_j R_j^T for every block of ``size`` rows, [O / size, size, size]."""
    shape = (-1, size, L_OI.shape[1])
    return L_OI.view(shape) @ R_OI.view(shape).mT


def column_blocks_product(L_OI: Tensor, R_OI: Tensor, size: int) -> Tensor:
    """L_k^T R_k for every block of ``size`` columns, [I / size, size, size]."""
    shape = (len(L_OI), -1, size)
    return L_OI.view(shape).permute(1, 2, 0) @ R_OI.view(shape).transpose(0, 1)
