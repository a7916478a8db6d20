"""S4D: a diagonal linear recurrence over tokens, as good as a structured one if it starts well.

Paper:   Gu, Gupta, Goel, Re, "On the Parameterization and Initialization of Diagonal State Space
         Models", NeurIPS 2022.  Code: state-spaces/s4.
Idea:    Every channel is a sum of damped oscillations.  Its convolution kernel is a Vandermonde
         product; decoding is one complex multiplication per mode.

Equations -> code
    zero-order hold   A_bar = exp(dt A),  B_bar = (A_bar - 1) / A B           Modes
    kernel            K_l = f Re sum_n C_n B_bar_n A_bar_n^l                  kernel
    recurrence        x <- A_bar x + B_bar u,  y = f Re C x + skip u          step
    f = 2 where modes stand for themselves and their conjugates, else 1
Inits: Lin -1/2 + i pi n; Inv -1/2 + i (S/pi) (S/(2n+1) - 1); LegS: eigenvalues of HiPPO-LegS's
    normal part.
Shapes:  u and y [B, H, N], H channels, M modes of a channel, S = 2 M the size of the state.
Cost:    H M N for the kernel, H N log N for the convolution; a step B H M.
Differs: the mixing of channels behind it (GELU, GLU) is the model's, not the mixer's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from blockwright.attention.long_convolution import fft_convolution
from blockwright.attention.mixer import SequenceMixer
from blockwright.attention.mixers.hippo import normal_part

LEAST_STEP, LARGEST_STEP = 1e-3, 1e-1
"""Between which dt is drawn, evenly in its logarithm."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Modes:
    """The recurrence of every channel."""

    A: Tensor
    """complex [H, M], real parts below 0"""
    B: Tensor
    """complex [H, M]"""
    C: Tensor
    """complex [H, M]"""
    dt: Tensor
    """fp32 [H], above 0"""
    skip: Tensor
    """fp32 [H]: what goes straight from input to output."""
    paired: bool = True
    """Whether every mode stands for its conjugate, too."""

    @classmethod
    def drawn(cls, A: Tensor, channels: int, seed: int, *, paired: bool = True) -> Modes:
        """The same A [M] in all channels, B = 1, C normal, dt log-uniform, skip normal."""
        draw = torch.Generator().manual_seed(seed)
        C = torch.randn(channels, len(A), 2, generator=draw)
        low, high = math.log(LEAST_STEP), math.log(LARGEST_STEP)
        return cls(
            A=A.to(torch.complex64).expand(channels, -1),
            B=torch.ones(channels, len(A), dtype=torch.complex64),
            C=torch.view_as_complex(C) * math.sqrt(0.5),
            dt=torch.empty(channels).uniform_(low, high, generator=draw).exp(),
            skip=torch.randn(channels, generator=draw),
            paired=paired,
        )

    @property
    def log_A_bar(self) -> Tensor:
        return self.dt[:, None] * self.A

    @property
    def B_bar(self) -> Tensor:
        return torch.expm1(self.log_A_bar) / self.A * self.B

    def kernel(self, taps: int) -> Tensor:
        """K [H, taps], fp32."""
        places = torch.arange(taps, device=self.A.device)
        powers_HML = torch.exp(self.log_A_bar[..., None] * places)
        return self.real(torch.einsum("hm,hml->hl", self.C * self.B_bar, powers_HML))

    def real(self, values: Tensor) -> Tensor:
        """f Re: what sums over the modes stand for."""
        return values.real * (2 if self.paired else 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class S4d(SequenceMixer[Tensor]):
    """A diagonal state space on one stream u [B, H, N]; the state is complex [B, H, M]."""

    paper: ClassVar[str] = "Gu et al., S4D, NeurIPS 2022"

    modes: Modes

    def start(self, *streams: Tensor) -> Tensor:
        (u,) = streams
        return self.modes.B.new_zeros(len(u), *self.modes.B.shape)

    def parallel(self, *streams: Tensor) -> Tensor:
        (u,) = streams
        convolved = fft_convolution(u.float(), self.modes.kernel(u.shape[2]))
        return (convolved + self.modes.skip[:, None] * u.float()).to(u.dtype)

    def chunk(self, state: Tensor, *streams: Tensor) -> tuple[Tensor, Tensor]:
        (u,) = streams
        size, modes = u.shape[2], self.modes
        places = torch.arange(size, device=u.device)
        powers_HML = torch.exp(modes.log_A_bar[..., None] * (places + 1))
        before = modes.real(torch.einsum("bhm,hm,hml->bhl", state, modes.C, powers_HML))
        left_HML = modes.B_bar[..., None] * torch.exp(modes.log_A_bar[..., None] * places.flip(0))
        added = torch.einsum("hml,bhl->bhm", left_HML, u.to(left_HML.dtype))
        state = powers_HML[..., -1] * state + added
        return (self.parallel(u.float()) + before).to(u.dtype), state

    def step(self, state: Tensor, *streams: Tensor) -> tuple[Tensor, Tensor]:
        (u,) = streams
        modes, now = self.modes, u.float()
        state = modes.log_A_bar.exp() * state + modes.B_bar * now
        output = modes.real((modes.C * state).sum(-1, keepdim=True))
        return (output + modes.skip[:, None] * now).to(u.dtype), state


def linear_modes(count: int) -> Tensor:
    """S4D-Lin: A_n = -1/2 + i pi n, complex [M]."""
    return torch.complex(torch.full((count,), -0.5), math.pi * torch.arange(count).float())


def inverse_modes(count: int) -> Tensor:
    """S4D-Inv: A_n = -1/2 + i (S / pi) (S / (2 n + 1) - 1) with S = 2 M."""
    size, n = 2 * count, torch.arange(count)
    return torch.complex(
        torch.full((count,), -0.5), (size / math.pi) * (size / (2 * n + 1).float() - 1)
    )


def legs_modes(count: int) -> Tensor:
    """S4D-LegS: eigenvalues of the normal part of HiPPO-LegS with positive imaginary part."""
    values: Tensor = torch.linalg.eigvals(normal_part(2 * count))
    return values[values.imag > 0].to(torch.complex64)
