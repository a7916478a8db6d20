"""Block coordinate descent on quadratics: which block to move, and how far.

    minimise  f(x) = 1/2 x^T H x - b^T x,   g = H x - b

Paper:   Nutini, Laradji, Schmidt, "Let's Make Block Coordinate Descent Converge Faster", JMLR 2022.
Idea:    A large gradient promises little where the curvature is large.  Rules that divide by a
         bound on the curvature guarantee more progress per step; blocks that may vary, and steps
         that solve the block exactly, more still.

Equations -> code     L_b = largest eigenvalue of H_bb, D diagonal with D >= H_bb
    GS    |g_b|^2                  progress        Gauss-Southwell
    GSL   |g_b|^2 / L_b
    GSD   sum_j g_j^2 / D_j
    GSQ   g_b^T H_bb^-1 g_b        = twice the decrease of the exact step
    GSD with variable blocks       variable_block  exact: the largest g_j^2 / D_j
    exact step  x_b -= H_bb^-1 g_b,  g -= H_:b H_bb^-1 g_b     step
    sorted partition               sorted_blocks   blocks of similar constants
    message passing                forest_solve    where H_bb couples as a forest, O(|b|)
Shapes:  N coordinates, B blocks of S coordinates each.
Cost:    a choice O(N), for GSQ O(N S^2); a step O(N S).
Left out: L1 and bounds (active sets).
"""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor


class Rule(StrEnum):
    """How a block of a fixed partition is chosen."""

    GS = "gs"
    GSL = "gsl"
    GSD = "gsd"
    GSQ = "gsq"


def progress(rule: Rule, H_NN: Tensor, g_N: Tensor, blocks_BS: Tensor) -> Tensor:
    """What the rule says of every block, [B]; the largest is to be moved."""
    g_BS = g_N[blocks_BS]
    if rule is Rule.GS:
        return g_BS.square().sum(1)
    H_BSS = H_NN[blocks_BS[:, :, None], blocks_BS[:, None, :]]
    if rule is Rule.GSL:
        found_B: Tensor = g_BS.square().sum(1) / torch.linalg.eigvalsh(H_BSS)[:, -1]
        return found_B
    if rule is Rule.GSD:
        return (g_BS.square() / H_BSS.abs().sum(2)).sum(1)
    newton_BS: Tensor = torch.linalg.solve(H_BSS, g_BS)
    return (g_BS * newton_BS).sum(1)


def variable_block(progress_N: Tensor, size: int) -> Tensor:
    """int64 [..., size]: the coordinates of largest progress, any of them; ties to the lowest.

    With progress g_j^2 / D_j this is GSD's best block of that size.
    """
    return torch.sort(progress_N, dim=-1, descending=True, stable=True).indices[..., :size]


def sorted_blocks(constants_N: Tensor, size: int) -> Tensor:
    """int64 [N / size, size]: a partition into blocks of similar constants.

    Raises ``ValueError`` where ``size`` does not divide N.
    """
    if len(constants_N) % size:
        raise ValueError(f"{len(constants_N)} coordinates are not whole blocks of {size}")
    return torch.sort(constants_N, stable=True).indices.view(-1, size)


def step(H_NN: Tensor, g_N: Tensor, block_S: Tensor) -> Tensor:
    """The change of the block to its exact minimum, [S]; g is brought up to date in place."""
    newton_S: Tensor = torch.linalg.solve(H_NN[block_S[:, None], block_S], g_N[block_S])
    change_S = -newton_S
    g_N += H_NN[:, block_S] @ change_S
    return change_S


def forest_solve(H_SS: Tensor, right_S: Tensor) -> Tensor:
    """Solve H y = right, where the couplings of H form a forest: leaves to roots, and back.

    Raises ``ValueError`` where they close a cycle.
    """
    order, parent = _leaves_last(H_SS)
    diagonal, right = H_SS.diagonal().tolist(), right_S.tolist()
    coupling = [float(H_SS[s, p]) if p >= 0 else 0.0 for s, p in enumerate(parent)]
    for s in reversed(order):
        if parent[s] >= 0:
            share = coupling[s] / diagonal[s]
            diagonal[parent[s]] -= share * coupling[s]
            right[parent[s]] -= share * right[s]
    for s in order:
        above = coupling[s] * right[parent[s]] if parent[s] >= 0 else 0.0
        right[s] = (right[s] - above) / diagonal[s]
    return right_S.new_tensor(right)


def _leaves_last(H_SS: Tensor) -> tuple[list[int], list[int]]:
    """An order in which every node comes behind its parent, and the parents (-1: a root)."""
    near = [row.nonzero()[:, 0].tolist() for row in H_SS]
    parent, order = [-2] * len(near), []
    for root in range(len(near)):
        waiting = [root] if parent[root] == -2 else []
        parent[root] = -1 if waiting else parent[root]
        while waiting:
            node = waiting.pop()
            order.append(node)
            for other in near[node]:
                if other in (node, parent[node]):
                    continue
                if parent[other] != -2:
                    raise ValueError("the couplings of the block close a cycle: it is no forest")
                parent[other] = node
                waiting.append(other)
    return order, parent
