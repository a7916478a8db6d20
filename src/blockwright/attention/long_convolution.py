"""Long causal convolutions: by the library's FFT, and as a few dense products (Monarch form).

Paper:   Fu, Kumbong, Nguyen, Re, "FlashFFTConv: Efficient Convolutions for Long Sequences with
         Tensor Cores", ICLR 2024.  Code: HazyResearch/flash-fft-conv.
Idea:    A DFT of length N1 N2 is a product with a DFT matrix of N1, a product by twiddles, and one
         with a DFT matrix of N2: dense products, which matrix units do fast.  The spectrum stays in
         the order in which it comes out.  Columns that a filter does not need are not computed.

Equations -> code
    Y = F_N1 X,  Z = (Y * W) F_N2,  W[k1, n2] = exp(-2 pi i k1 n2 / N)     Monarch.transform
    spectrum index of Z[k1, k2]: k1 + N1 k2;  x index of X[n1, n2]: n1 N2 + n2
Shapes:  u [B, H, L], taps k [H, T], y [B, H, L]; L tokens, T taps, N >= L + T - 1.
Cost:    about 8 N (N1 + N2) per transform, where an FFT takes 5 N log2 N: more arithmetic in a form
         that GPUs like.  On CPUs the FFT is faster, and ``fft_convolution`` is what mixers use.
Differs: two factors; the paper splits three ways above 2,048 and packs real inputs in half the
         length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


def fft_convolution(u_BHL: Tensor, k_HT: Tensor) -> Tensor:
    """y_t = sum_s k_s u_{t-s}, fp32, no wrapping around."""
    tokens, taps = u_BHL.shape[-1], k_HT.shape[-1]
    size = tokens + taps - 1
    spectrum = torch.fft.rfft(u_BHL, n=size) * torch.fft.rfft(k_HT, n=size)
    y_BHN: Tensor = torch.fft.irfft(spectrum, n=size)
    return y_BHN[..., :tokens]


@dataclass(frozen=True)
class Monarch:
    """The transform of one length, N = rows x columns."""

    rows: int
    """N1"""
    columns: int
    """N2"""
    kept: int | None = None
    """Columns of the spectrum at each end that are computed: the 2 kept N1 lowest frequencies,
    positive and negative; None: all."""

    @property
    def size(self) -> int:
        return self.rows * self.columns

    @cached_property
    def chosen(self) -> Tensor:
        """Columns k2 that are computed."""
        every = torch.arange(self.columns)
        if self.kept is None:
            return every
        return every[(every < self.kept) | (every >= self.columns - self.kept)]

    def convolve(self, u_BHL: Tensor, k_HT: Tensor) -> Tensor:
        """``fft_convolution``, or with the other frequencies of the taps at zero."""
        tokens, taps = u_BHL.shape[-1], k_HT.shape[-1]
        if tokens + taps - 1 > self.size:
            raise ValueError(
                f"{tokens} tokens and {taps} taps need a transform of {tokens + taps - 1},"
                f" this one has {self.size}"
            )
        spectrum = self.transform(u_BHL) * self.transform(k_HT)
        return self.inverse(spectrum)[..., :tokens].real

    def transform(self, x: Tensor) -> Tensor:
        """The spectrum [..., N1, chosen] of x [..., L]; rows of zeros behind L are skipped."""
        used = -(-x.shape[-1] // self.columns)
        padded = torch.nn.functional.pad(x, (0, used * self.columns - x.shape[-1]))
        X = padded.unflatten(-1, (used, self.columns)).to(torch.complex64)
        Y: Tensor = (dft(self.rows)[:, :used] @ X) * self._twiddles
        return Y @ dft(self.columns)[:, self.chosen]

    def inverse(self, Z: Tensor) -> Tensor:
        """x [..., N] complex of a spectrum [..., N1, chosen]."""
        Y = Z @ dft(self.columns)[:, self.chosen].conj().mT
        return (dft(self.rows).conj() @ (Y * self._twiddles.conj())).flatten(-2) / self.size

    def products(self) -> tuple[int, int]:
        """Multiplications of the two dense products of one whole transform."""
        return self.rows * self.size, len(self.chosen) * self.size

    @cached_property
    def _twiddles(self) -> Tensor:
        return _roots(torch.outer(torch.arange(self.rows), torch.arange(self.columns)), self.size)


def dft(size: int) -> Tensor:
    """The DFT matrix, complex64 [size, size]."""
    n = torch.arange(size)
    return _roots(torch.outer(n, n), size)


def _roots(powers: Tensor, size: int) -> Tensor:
    """exp(-2 pi i powers / size); powers are reduced first, so that no phase is lost."""
    angle = (powers % size).double() * (-2 * math.pi / size)
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)
