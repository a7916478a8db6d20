"""Simvq: a codebook of vectors for one weight, and codes that make up for each other's errors.

Paper:   Zhu, Li, Xin, Xu, "Addressing Representation Collapse in Vector Quantized Models with One
         Linear Layer" (SimVQ), 2024; the paper codes features, here it is weights.
Idea:    With E = C A + b, C frozen, whatever is learned moves every entry, so that none dies.  For
         weights, which stand still while codes are found, k-means is a better start than a random
         C and least squares better than gradients; what the whole codebook costs is the output's
         error, so codes are found by a sweep and by descent, vector after vector.

Equations -> code
    z = W / s                               solve             s = rms of the group
    Eq. (5)   E = C A + b                   train_codebook    start=simvq; A, b by Adam
    k-means                                 kmeans            start=kmeans, weighted by s^2 h
    least squares of E, or of A and b       refit_codebook    fit=entries, fit=map
    codes                                   sweep_vectors, descend_vectors
Shapes:  O out features, I in features, K entries of D values, V = I / D, G groups of a row.
Units:   error = squared output error, summed over O, mean over tokens.  Cost = bytes as stored.
Needs:   INPUT_GRAM.   Fills: vq.
Cost:    time O(I^3) and per round O(O I (8 I + K)), memory eight copies of W.
Differs from the paper:
    1. What is coded stands still.  The paper trains an encoder beside the codebook, with a
       commitment loss and gradients straight through; there is nothing of that here.
    2. k-means starts and least squares refit (above); ``start=simvq,fit=map`` is the paper's
       parametrization throughout.
    3. Codes are found by GPTQ's sweep and by coordinate descent on vectors, not by nearest entry.
    4. Entries are rounded to 8-bit integers; rows are scaled up in the end (see quantease).
Raises:  NumericalError when W or H is not finite, no token reached the site, or H cannot be
         factored.
Checked: entries in use and error against a codebook trained entry by entry; error against
         integers of as many bits: tests/claims/test_simvq.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from blockwright.errors import CandidateError
from blockwright.methods.quantize._range_search import check_finite, input_energy
from blockwright.numerics.inverse_hessian import damped, upper_factor
from blockwright.numerics.losses import quadratic_error
from blockwright.numerics.ranges import SCALE_DTYPE
from blockwright.numerics.scale_refit import following_gain
from blockwright.numerics.vector_sweep import descend_vectors, sweep_vectors
from blockwright.numerics.vectors import kmeans, nearest, refit_codebook
from blockwright.tuning import train_codebook
from blockwright.types import (
    Format,
    LinearMethod,
    Statistic,
    Statistics,
    VectorFormat,
    VectorSolution,
)

Start = Literal["kmeans", "simvq"]
Fit = Literal["entries", "map"]
TOP = 127
"""Largest value of an entry."""
SAMPLE = 1 << 15
"""Vectors that the start sees."""
KMEANS_ROUNDS = 10
BATCH_RATE = 0.01
"""Learning rate of A and b."""
FIT_STEPS = 6
"""Conjugate gradients of a refit."""


@dataclass(frozen=True, kw_only=True)
class Simvq(LinearMethod):
    """SimVQ on weights."""

    paper: ClassVar[str] = "Zhu et al., SimVQ, 2024"
    family: ClassVar[str] = "quantize"
    version: ClassVar[int] = 1
    fills: ClassVar[type[Format]] = VectorFormat  # type: ignore[type-abstract]

    start: Start = "kmeans"
    fit: Fit = "entries"
    """What least squares move: every entry by itself, or all by one map, E = C A + b."""
    steps: int = 300
    """Batches of start=simvq."""
    rounds: int = 2
    """Times that the codebook is fitted and GPTQ sweeps on it."""
    passes: int = 3
    """Passes of coordinate descent, the codebook fitted before each."""
    damping: float = 0.01
    unbiased: bool = True
    """Whether rows are scaled up in the end."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("start", get_args(Start)), ("fit", get_args(Fit))):
            if getattr(self, name) not in allowed:
                raise CandidateError(
                    f"option simvq@{name}: got {getattr(self, name)!r}, allowed:"
                    f" {', '.join(allowed)}"
                )
        if not 0 < self.damping < float("inf"):
            raise CandidateError(
                f"option simvq@damping: got {self.damping}, needs a number above 0"
            )
        for name in ("steps", "rounds", "passes"):
            if getattr(self, name) < 0:
                raise CandidateError(
                    f"option simvq@{name}: got {getattr(self, name)}, needs 0 or more"
                )

    @property
    def needs(self) -> frozenset[Statistic]:
        return frozenset({Statistic.INPUT_GRAM})

    def solve(self, W_OI: Tensor, statistics: Statistics, format: Format) -> VectorSolution:
        check_finite(W_OI)
        if not isinstance(format, VectorFormat):
            raise CandidateError(f"simvq cannot fill {format.name}: it fills vq formats")
        h_I = input_energy(statistics)
        energy_V = h_I.view(-1, format.dim).sum(1)
        order_V = energy_V.argsort(descending=True, stable=True)
        order_I = (
            order_V[:, None] * format.dim + torch.arange(format.dim, device=W_OI.device)
        ).flatten()
        H_II = statistics.need(Statistic.INPUT_GRAM)
        U_II = upper_factor(H_II, self.damping, order=order_I)
        H_II = damped(H_II, self.damping)
        rms_OG = grouped(W_OI, format).square().mean(2).sqrt()
        z_ND, weight_ND, generator = self.sample(W_OI, rms_OG, h_I, format)
        E_KD = self.first_codebook(z_ND, weight_ND, format.entries, generator)
        step = float(E_KD.abs().max()) / TOP or 1.0
        layer = _Layer(W_OI, H_II, U_II, order_V, order_I, stored(rms_OG * step), format.dim)
        return self.improved(layer, E_KD / step)

    def sample(
        self, W_OI: Tensor, rms_OG: Tensor, h_I: Tensor, format: VectorFormat
    ) -> tuple[Tensor, Tensor, torch.Generator]:
        """Vectors [N, D] of weights over the rms of their groups, what their errors weigh, and
        what drew them.
        """
        generator = torch.Generator().manual_seed(self.seed)
        scale_OI = spread(rms_OG, W_OI)
        z_ND = torch.where(scale_OI > 0, W_OI / scale_OI, 0.0).view(-1, format.dim)
        weight_ND = (scale_OI.square() * h_I).view(-1, format.dim)
        weight_ND /= weight_ND.mean().clamp(min=torch.finfo(torch.float32).tiny)
        if len(z_ND) > SAMPLE:
            drawn = torch.randperm(len(z_ND), generator=generator)[:SAMPLE].to(W_OI.device)
            z_ND, weight_ND = z_ND[drawn], weight_ND[drawn]
        return z_ND, weight_ND, generator

    def first_codebook(
        self, z_ND: Tensor, weight_ND: Tensor, entries: int, generator: torch.Generator
    ) -> Tensor:
        """E [K, D]"""
        if self.start == "kmeans":
            return kmeans(z_ND, weight_ND, entries, rounds=KMEANS_ROUNDS, generator=generator)
        dim = z_ND.shape[1]
        return train_codebook(
            z_ND,
            torch.randn(entries, dim, generator=generator).to(z_ND.device) / dim**0.5,
            mapped=True,
            steps=self.steps,
            rate=BATCH_RATE,
            generator=generator,
            weight_ND=weight_ND,
        )

    def improved(self, layer: _Layer, C_KD: Tensor) -> VectorSolution:
        """Codes and codebook in turns; the best state that there was."""
        found = layer.nearest_codes(C_KD)
        best, least = found, layer.error(found)
        mapped = self.fit == "map"
        for turn in range(self.rounds + self.passes):
            E_KD = layer.fitted(found, C_KD, mapped=mapped)
            find = layer.swept if turn < self.rounds else layer.descended
            for tried in (layer.with_codebook(found, E_KD), find(found, E_KD)):
                error = layer.error(tried)
                if error < least:
                    best, least = tried, error
            found = tried
        return layer.unbiased(best) if self.unbiased else best


@dataclass(frozen=True)
class _Layer:
    """A weight, its scales, and the damped Gram of its inputs."""

    W_OI: Tensor
    H_II: Tensor
    U_II: Tensor
    """Of the inverse, in ``order_I``."""
    order_V: Tensor  # noqa: N815 - shape suffix
    """Vectors by falling energy."""
    order_I: Tensor  # noqa: N815 - shape suffix
    scale_OG: Tensor  # noqa: N815 - shape suffix
    """As stored; entries are in units of it."""
    dim: int

    def nearest_codes(self, E_KD: Tensor) -> VectorSolution:
        """Every vector by itself, errors weighted by the energy of the inputs."""
        S_OI = spread(self.scale_OG, self.W_OI)
        z_ND = torch.where(S_OI > 0, self.W_OI / S_OI, 0.0).view(-1, self.dim)
        weight_ND = (S_OI.square() * self.H_II.diagonal()).view(-1, self.dim)
        codes = nearest(z_ND, rounded(E_KD).float(), weight_ND)
        return VectorSolution(
            codes_OV=codes.view(len(self.W_OI), -1).to(torch.uint8),
            codebook_KD=rounded(E_KD),
            scale_OG=self.scale_OG,
        )

    def fitted(self, last: VectorSolution, C_KD: Tensor, *, mapped: bool) -> Tensor:
        """E [K, D] of least squares for the codes: free, or C A + b."""
        basis = torch.cat([C_KD, torch.ones_like(C_KD[:, :1])], 1) if mapped else None
        return refit_codebook(
            last.codebook_KD.float(),
            basis,
            last.codes_OV.long(),
            spread(self.scale_OG, self.W_OI),
            self.W_OI,
            self.H_II,
            steps=FIT_STEPS,
        )

    def with_codebook(self, last: VectorSolution, E_KD: Tensor) -> VectorSolution:
        return replace(last, codebook_KD=rounded(E_KD))

    def swept(self, last: VectorSolution, E_KD: Tensor) -> VectorSolution:
        """GPTQ, vector after vector."""
        rounder = _Rounder(self, rounded(E_KD).float())
        sweep_vectors(self.W_OI[:, self.order_I], self.U_II, self.dim, rounder)
        return replace(last, codes_OV=rounder.codes(), codebook_KD=rounded(E_KD))

    def descended(self, last: VectorSolution, E_KD: Tensor) -> VectorSolution:
        """One pass of coordinate descent."""
        last = self.with_codebook(last, E_KD)
        rounder = _Rounder(self, last.codebook_KD.float())
        descend_vectors(
            last.weight()[:, self.order_I],
            self.W_OI[:, self.order_I],
            self.H_II[self.order_I[:, None], self.order_I],
            self.dim,
            rounder,
        )
        return replace(last, codes_OV=rounder.codes())

    def unbiased(self, found: VectorSolution) -> VectorSolution:
        """Rows scaled so that E[y_hat y] = E[y^2]."""
        gain_O = following_gain(self.W_OI, found.weight(), self.H_II)
        return replace(found, scale_OG=stored(found.scale_OG * gain_O[:, None]))

    def error(self, found: VectorSolution) -> float:
        return quadratic_error(found.weight() - self.W_OI, self.H_II)


class _Rounder:
    """The nearest entries of vectors in ``order_V``; keeps their codes."""

    def __init__(self, layer: _Layer, E_KD: Tensor) -> None:
        self._E_KD, self._order_V = E_KD, layer.order_V
        first = layer.order_V * layer.dim
        self._scale_OV = spread(layer.scale_OG, layer.W_OI)[:, first]
        self._codes_OV = torch.empty_like(self._scale_OV, dtype=torch.uint8)

    def __call__(self, v: int, w_OD: Tensor, M_DD: Tensor) -> Tensor:
        scale_O1 = self._scale_OV[:, v : v + 1]
        z_OD = w_OD / torch.where(scale_O1 > 0, scale_O1, 1.0)
        codes_O = nearest(z_OD @ M_DD, self._E_KD @ M_DD)
        self._codes_OV[:, v] = codes_O.to(torch.uint8)
        return self._E_KD[codes_O] * scale_O1

    def codes(self) -> Tensor:
        """uint8 [O, V], in the order of the inputs."""
        return self._codes_OV[:, self._order_V.argsort()].contiguous()


def grouped(W_OI: Tensor, format: VectorFormat) -> Tensor:
    """[O, G, I / G]"""
    return W_OI.view(len(W_OI), -1, format.group_size or W_OI.shape[1])


def rounded(E_KD: Tensor) -> Tensor:
    """Entries as they are stored, int8."""
    return E_KD.round().clamp(-TOP, TOP).to(torch.int8)


def stored(scale_OG: Tensor) -> Tensor:
    return scale_OG.to(SCALE_DTYPE).float()


def spread(of_groups_OG: Tensor, W_OI: Tensor) -> Tensor:
    """A value of every group for each of its weights, [O, I]."""
    inputs = W_OI.shape[1] // of_groups_OG.shape[1]
    return of_groups_OG.repeat_interleave(inputs, 1)


METHOD = Simvq
