"""Claims about one bit beside columns in 4: outlier layers, 16 channels eight times as large."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from blockwright.formats.bin import BinFormat
from blockwright.formats.int import IntFormat
from blockwright.methods.quantize.ptq161 import Ptq161
from blockwright.methods.quantize.quantease import QuantEase
from blockwright.methods.quantize.rtn import Rtn
from tests.claims.ledger import Grade, claim
from tests.layers import Layer, outlier_layer

FORMAT = BinFormat(20)
TWO_BITS = IntFormat(2, 64, symmetric=False)
FITTED = Ptq161(rounds=0, passes=0, unbiased=False)
"""The paper's codes, values fitted."""


def layer(seed: int) -> Layer:
    return outlier_layer(seed, outlier_channels=16)


def error(method: Ptq161, layer: Layer) -> float:
    return layer.heldout_error(method.solve(layer.W_OI, layer.statistics, FORMAT).weight())


@claim(
    method="ptq161",
    says="columns chosen by their activations beat columns chosen by chance",
    measures="held-out error / that of random columns in 4 bits, outlier-layer, bin-p20",
    grade=Grade.FIRM,
    at_most=0.5,
)
def test_the_mask_is_worth_its_bits(seed: int) -> float:
    layers = layer(seed)
    by_chance = torch.rand(256, generator=torch.Generator().manual_seed(seed))
    blind = replace(layers.statistics, input_absmax=by_chance)
    W_hat = Ptq161().solve(layers.W_OI, blind, FORMAT).weight()
    return error(Ptq161(), layers) / layers.heldout_error(W_hat)


def signed(layer: Layer) -> torch.Tensor:
    """alpha sign(W - mu) + mu beside 4 bits, nothing fitted."""
    W_hat = layer.W_OI.clone()
    largest = layer.statistics.input_absmax
    assert largest is not None
    salient = torch.zeros(256, dtype=torch.bool)
    salient[largest.topk(FORMAT.kept(256)).indices] = True
    W_hat[:, salient] = FORMAT.salient.nearest(W_hat[:, salient]).weight()
    R = layer.W_OI[:, ~salient]
    mu = R.mean(1, keepdim=True)
    alpha = (R - mu).abs().mean(1, keepdim=True)
    W_hat[:, ~salient] = torch.where(mu > R, mu - alpha, mu + alpha)
    return W_hat


@claim(
    method="ptq161",
    says="values fitted to the output beat means of magnitudes, codes alike",
    measures="held-out error / that of alpha sign(W - mu) + mu, outlier-layer, bin-p20",
    grade=Grade.FIRM,
    at_most=0.98,
)
def test_fitted_values_beat_means(seed: int) -> float:
    layers = layer(seed)
    return error(FITTED, layers) / layers.heldout_error(signed(layers))


@claim(
    method="ptq161",
    says="codes found anew on what was fitted, 4 bits making up for one, lose half of that",
    measures="held-out error / that of the paper's codes, values fitted, outlier-layer, bin-p20",
    grade=Grade.FIRM,
    at_most=0.6,
)
def test_codes_found_anew_beat_signs(seed: int) -> float:
    layers = layer(seed)
    return error(Ptq161(unbiased=False), layers) / error(FITTED, layers)


@claim(
    method="ptq161",
    says="where few inputs carry the output it beats two bits, rounded or improved, at fewer bits",
    measures="held-out error / 0.6 that of rtn int2-g64, then / that of quantease, outlier-layer",
    grade=Grade.FIRM,
    at_most=1,
)
def test_it_beats_two_bits(seed: int) -> Iterator[float]:
    layers = layer(seed)
    found = error(Ptq161(), layers)
    assert FORMAT.stored_bytes((256, 256)) < TWO_BITS.stored_bytes((256, 256))
    for method, share in ((Rtn(), 0.6), (QuantEase(), 1.0)):
        W_hat = method.solve(layers.W_OI, layers.statistics, TWO_BITS).weight()
        yield found / (share * layers.heldout_error(W_hat))


@claim(
    method="bin",
    says="the mask is one bit per input, and what is solved is what is stored",
    measures="bits of the mask - inputs, values that differ, bytes - the declared ones, [256, 256]",
    grade=Grade.HARD,
    at_least=0,
    at_most=0,
)
def test_bin_stores_what_was_solved(seed: int) -> Iterator[float]:
    layers = layer(seed)
    solution = Ptq161().solve(layers.W_OI, layers.statistics, FORMAT)
    tensors = FORMAT.pack(solution, None, torch.bfloat16).stored_tensors()
    yield 8 * tensors["mask"].nbytes - 256
    loaded = FORMAT.empty((256, 256), bias=False, dtype=torch.bfloat16)
    loaded.load_stored(tensors)
    yield float((loaded.dequantize() != solution.weight()).sum())
    yield sum(tensor.nbytes for tensor in tensors.values()) - FORMAT.stored_bytes((256, 256))


@claim(
    method="bin",
    says="sign(0) is 1: a weight at its row's mean takes the higher value",
    measures="codes of such weights that are not 1, [64, 128]",
    grade=Grade.HARD,
    at_most=0,
)
def test_the_sign_of_zero_is_positive(seed: int) -> float:
    random = torch.Generator().manual_seed(seed)
    W = torch.randint(-1, 2, (64, 64), generator=random).float()
    W = torch.cat([W, -W, torch.zeros(64, 128)], dim=1)
    absmax = torch.cat([torch.zeros(128), torch.ones(128)])
    statistics = replace(layer(seed).statistics, input_absmax=absmax)
    solution = FITTED.solve(W, statistics, BinFormat(50))
    at_mean = W[:, :128] == 0
    return float((solution.rest.codes_OI[at_mean] != 1).sum())
