"""Layers that tests and claims measure methods on; seeded, computed in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from blockwright.numerics.losses import relative_error
from blockwright.types import Statistics


@dataclass(frozen=True)
class Layer:
    """A linear layer with calibration and held-out inputs of the same distribution, all fp32."""

    W_OI: Tensor
    X_TI: Tensor
    """Calibration inputs."""
    X_heldout: Tensor

    @property
    def statistics(self) -> Statistics:
        """Everything that capture gathers from the calibration inputs (unit output gradients)."""
        X = self.X_TI
        return Statistics(
            tokens=len(X),
            input_gram=gram(X),
            input_samples=X[:64].clone(),
            input_absmax=X.abs().amax(0),
            input_absmean=X.abs().mean(0),
            cross_gram=gram(X),
            output_gradient=torch.ones(len(self.W_OI)),
        )

    def heldout_error(self, W_hat_OI: Tensor) -> float:
        """rel = tr(D H D^T) / tr(W H W^T), D = W_hat - W, on the held-out inputs."""
        return relative_error(W_hat_OI - self.W_OI, self.W_OI, gram(self.X_heldout))


def gram(X_TI: Tensor) -> Tensor:
    """E[x x^T], [I, I] fp32."""
    X = X_TI.double()
    return (X.T @ X / len(X)).float()


def outlier_layer(
    seed: int,
    out_features: int = 256,
    in_features: int = 256,
    tokens: int = 2048,
    outlier_channels: int = 4,
) -> Layer:
    """Heavy-tailed weights; inputs with a 1/k spectrum and a few channels eight times as large.

    ``tokens`` inputs for calibration and as many held out.
    """
    random = _generator(seed)
    O, I, T = out_features, in_features, tokens  # noqa: E741
    student = _normal(random, O, I) / (_normal(random, 5, O, I).square().mean(0)).sqrt()
    W = 0.02 * student * torch.exp(0.3 * _normal(random, O, 1))
    directions, _ = torch.linalg.qr(_normal(random, I, I))
    spectrum = 1.0 / torch.arange(1, I + 1, dtype=torch.float64)
    spectrum /= spectrum.mean()
    X = _normal(random, 2 * T, I) @ (directions * spectrum.sqrt()).T
    X[:, torch.randperm(I, generator=random)[:outlier_channels]] *= 8
    return Layer(W.float(), X[:T].float(), X[T:].float())


def synth_layer(seed: int, features: int = 256, tokens: int = 4000) -> Layer:
    """Gaussian weights; inputs of a quarter of the rank plus noise, with columns scaled unevenly.

    ``tokens`` inputs for calibration and as many held out.
    """
    random = _generator(seed)
    rank = features // 4
    mixing = _normal(random, features, rank)
    X = _normal(random, 2 * tokens, rank) @ mixing.T / rank**0.5
    X += 0.3 * _normal(random, 2 * tokens, features)
    X *= torch.exp(0.7 * _normal(random, features))
    W = _normal(random, features, features) / features**0.5
    return Layer(W.float(), X[:tokens].float(), X[tokens:].float())


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _normal(random: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=random, dtype=torch.float64)
