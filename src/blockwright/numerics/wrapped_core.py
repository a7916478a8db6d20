"""A sparse core between two block-diagonal wrappers: the search of ARMOR, and a refit of the core.

    W_hat = A (S . M) B,  A, B block-diagonal, M keeps 2 of 4

Paper:   Liu, Liu, Wang, Zhao, Yang, "ARMOR: High-Performance Semi-Structured Pruning via
         Adaptive Matrix Factorization", 2025.
Idea:    The wrappers turn the weight into a basis where zeros cost less.  With an error that is
         diagonal in the inputs every pair of blocks is a problem of its own: one group of four may
         be chosen anew, exactly, in all pairs at once.

Equations -> code     E = (A C B - W) . h,  C = S . M
    proxy    P = sum E (A C B - W)                Search.proxy
    Adam     on A, B and S                        Search.step
    group    z = K_TT^-1 y_T, gain y_T z          regroup       all six pairs T of four
    refit    min tr((A X B - W) Hd (A X B - W)^T) refit_core    conjugate gradients on X . M
Shapes:  O out, I in features, b block; J = O / b, K = I / b, G groups of a pair of blocks.
Cost:    search 14 O I b operations per iteration, refit O(O I^2); memory ten W.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from blockwright.numerics.block_diagonal import (
    column_blocks_product,
    left_times,
    row_blocks_product,
    times_right,
)

PAIRS = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
"""What may stay of four."""
RIDGE = 1e-9
BETAS = (0.9, 0.999)
EPSILON = 1e-8


@dataclass
class Wrapped:
    """A, B and the core."""

    A_JBB: Tensor
    B_KBB: Tensor
    C_OI: Tensor
    mask_OI: Tensor  # noqa: N815 - shape suffix

    @classmethod
    def plain(cls, W_OI: Tensor, mask_OI: Tensor, size: int) -> Wrapped:
        """Without wrappers: the weight on its mask."""
        eye = torch.eye(size, device=W_OI.device)
        A_JBB, B_KBB = (eye.repeat(n // size, 1, 1) for n in W_OI.shape)
        return cls(A_JBB, B_KBB, torch.where(mask_OI, W_OI, 0), mask_OI)

    def weight(self) -> Tensor:
        """A C B."""
        return times_right(left_times(self.A_JBB, self.C_OI), self.B_KBB)

    def clone(self) -> Wrapped:
        """A copy of its own."""
        return Wrapped(*(t.clone() for t in (self.A_JBB, self.B_KBB, self.C_OI, self.mask_OI)))


@dataclass
class Adam:
    """Moments of one tensor."""

    rate: float
    moments: tuple[Tensor, Tensor] | None = None
    steps: int = 0

    def move(self, value: Tensor, gradient: Tensor, where: Tensor | None = None) -> None:
        """One step, in place; elsewhere than ``where`` nothing moves."""
        if self.moments is None:
            self.moments = (torch.zeros_like(value), torch.zeros_like(value))
        first, second = self.moments
        self.steps += 1
        first.lerp_(gradient, 1 - BETAS[0])
        second.lerp_(gradient.square(), 1 - BETAS[1])
        correction = (1 - BETAS[1] ** self.steps) ** 0.5
        change = first / (second.sqrt() / correction + EPSILON)
        change *= -self.rate / (1 - BETAS[0] ** self.steps)
        value += change if where is None else change * where


@dataclass
class Search:
    """Alternating steps on wrappers and core."""

    W_OI: Tensor
    h_I: Tensor  # noqa: N815 - shape suffix
    found: Wrapped
    rate: float
    generator: torch.Generator
    proxies: list[float] = field(default_factory=list)
    """P before every iteration, relative to sum W^2 h."""

    def run(self, iterations: int) -> Wrapped:
        """The best point met in so many iterations."""
        total = float((self.W_OI.square() * self.h_I).sum()) or 1.0
        adams = (Adam(self.rate), Adam(self.rate), Adam(self.rate))
        best, least = self.found, float("inf")
        for iteration in range(iterations + 1):
            error_OI = self.found.weight() - self.W_OI
            self.proxies.append(float((error_OI.square() * self.h_I).sum()) / total)
            if self.proxies[-1] < least:
                best, least = self.found.clone(), self.proxies[-1]
            if iteration < iterations:
                self.step(error_OI, adams)
        return best

    def step(self, error_OI: Tensor, adams: tuple[Adam, Adam, Adam]) -> None:
        """One choice of groups, then one step of Adam; in place."""
        w, size = self.found, self.found.A_JBB.shape[1]
        slope_OI = left_times(w.A_JBB.mT, times_right(error_OI * self.h_I, w.B_KBB.mT))
        error_OI += regroup(w, slope_OI, self.h_I, self.generator)
        E_OI = error_OI * self.h_I
        A_slope = row_blocks_product(E_OI, times_right(w.C_OI, w.B_KBB), size)
        B_slope = column_blocks_product(left_times(w.A_JBB, w.C_OI), E_OI, size)
        for adam, value, slope in zip(
            adams[:2], (w.A_JBB, w.B_KBB), (A_slope, B_slope), strict=True
        ):
            adam.move(value, slope)
        adams[2].move(w.C_OI, slope_OI * w.mask_OI, w.mask_OI)


def regroup(w: Wrapped, slope_OI: Tensor, h_I: Tensor, generator: torch.Generator) -> Tensor:
    """Choose one group of four anew in every pair of blocks, in place; the change of A C B.

    Groups are drawn with probability in proportion to |dP/dS|, summed over their four.
    """
    J, b, _ = w.A_JBB.shape
    K = len(w.B_KBB)
    grouped = (J, b, K, b // 4, 4)
    by_pair = (0, 2, 1, 3, 4)  # [J, K, b, G, 4]
    slopes = slope_OI.view(grouped).permute(by_pair).reshape(J, K, -1, 4)
    chance = slopes.abs().sum(3) + 1e-30
    noise = torch.rand(chance.shape, generator=generator, device=chance.device).clamp_(min=1e-30)
    drawn = (noise.log() / chance).argmax(2)  # [J, K], an exponential race
    p, g = drawn // (b // 4), drawn % (b // 4)
    j, k = torch.meshgrid(torch.arange(J), torch.arange(K), indexing="ij")
    four = torch.arange(4)
    rows = (j * b + p)[..., None]
    columns = (k * b + g * 4)[..., None] + four
    a_JKB = w.A_JBB[j, :, p]
    aa = a_JKB.square().sum(2)[..., None]
    B_JK4B = w.B_KBB[k[..., None], g[..., None] * 4 + four]
    gram = (B_JK4B * h_I.view(K, 1, b)) @ B_JK4B.mT
    before = w.C_OI[rows, columns]
    y = slope_OI[rows, columns] - aa * (gram @ before[..., None])[..., 0]
    after, kept = best_pair(gram, y)
    after = after / (aa + EPSILON)
    w.C_OI[rows, columns] = after
    w.mask_OI[rows, columns] = kept
    change_JKB = ((after - before)[..., None, :] @ B_JK4B)[..., 0, :]
    return (a_JKB[..., :, None] * change_JKB[..., None, :]).transpose(1, 2).reshape(slope_OI.shape)


def best_pair(gram: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """-K_TT^-1 y_T of the pair T that gains most, and T, [..., 4] each."""
    first, second = (torch.tensor(side) for side in zip(*PAIRS, strict=True))
    k11, k22 = gram[..., first, first] + RIDGE, gram[..., second, second] + RIDGE
    k12, y1, y2 = gram[..., first, second], y[..., first], y[..., second]
    determinant = (k11 * k22 - k12.square()).clamp(min=RIDGE**2)
    z1 = (k22 * y1 - k12 * y2) / determinant
    z2 = (k11 * y2 - k12 * y1) / determinant
    best = (y1 * z1 + y2 * z2).argmax(-1, keepdim=True)
    places = torch.cat((first[best], second[best]), -1)
    values = -torch.cat((z1.gather(-1, best), z2.gather(-1, best)), -1)
    zeros = torch.zeros_like(y)
    kept = torch.zeros_like(y, dtype=torch.bool).scatter(-1, places, True)
    return zeros.scatter(-1, places, values), kept


def refit_core(W_OI: Tensor, Hd_II: Tensor, w: Wrapped, iterations: int) -> Tensor:
    """The core [O, I] of least tr((A X B - W) Hd (A X B - W)^T) on the mask, from the present one.

    Preconditioned by |A_:p|^2 and diag(B Hd B^T).
    """
    curvature_O = w.A_JBB.square().sum(1).flatten()
    h_KB = Hd_II.diagonal().view(len(w.B_KBB), 1, -1)
    curvature_I = (w.B_KBB.square() * h_KB).sum(2).flatten()
    scale_OI = (curvature_O[:, None] * curvature_I).clamp(min=1e-30)

    def pulled(D_OI: Tensor) -> Tensor:
        return left_times(w.A_JBB.mT, times_right(D_OI @ Hd_II, w.B_KBB.mT)) * w.mask_OI

    X, residual = w.C_OI.clone(), pulled(W_OI - w.weight())
    direction = residual / scale_OI
    left = float((residual * direction).sum())
    for _ in range(iterations):
        image = pulled(Wrapped(w.A_JBB, w.B_KBB, direction, w.mask_OI).weight())
        bend = float((direction * image).sum())
        if left <= 0 or bend <= 0:
            break
        X += left / bend * direction
        residual -= left / bend * image
        preconditioned = residual / scale_OI
        now = float((residual * preconditioned).sum())
        direction = preconditioned + now / left * direction
        left = now
    return X
