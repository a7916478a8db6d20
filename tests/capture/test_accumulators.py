"""Accumulators give what a single pass over all inputs gives."""

from __future__ import annotations

import torch

from blockwright.capture.accumulators import (
    GRAM_BLOCK,
    AbsMax,
    AbsMean,
    Gram,
    Samples,
    accumulators_for,
)
from blockwright.types import Statistic

X_TI = torch.randn(1000, 12, generator=torch.Generator().manual_seed(0))


def test_gram_is_the_mean_outer_product() -> None:
    gram = Gram(12)
    for part in X_TI.split(77):
        gram.update(part)
    torch.testing.assert_close(gram.result(), X_TI.T @ X_TI / 1000, rtol=1e-5, atol=1e-5)
    assert torch.equal(gram.result(), gram.result().T)


def test_a_gram_of_more_features_than_a_block_is_whole() -> None:
    x_TI = torch.randn(40, 2 * GRAM_BLOCK + 3, generator=torch.Generator().manual_seed(0))
    gram = Gram(x_TI.shape[1])
    gram.update(x_TI)
    torch.testing.assert_close(gram.result(), x_TI.T @ x_TI / 40, rtol=1e-5, atol=1e-5)


def test_absmax_and_absmean_do_not_depend_on_batching() -> None:
    whole, parts = AbsMax(12), AbsMax(12)
    mean = AbsMean(12)
    whole.update(X_TI)
    for part in X_TI.split(33):
        parts.update(part)
        mean.update(part)
    assert torch.equal(whole.result(), parts.result())
    torch.testing.assert_close(mean.result(), X_TI.abs().mean(0))


def test_samples_are_rows_of_the_input_whatever_the_batching() -> None:
    whole, parts = Samples(12, rows=50), Samples(12, rows=50)
    whole.update(X_TI)
    for part in X_TI.split(200):
        parts.update(part)
    assert torch.equal(whole.result(), parts.result())
    assert all((row == X_TI).all(1).any() for row in whole.result())


def test_samples_are_uniform_over_the_stream() -> None:
    counter_TI = torch.arange(20_000.0)[:, None]
    samples = Samples(1, rows=2_000)
    samples.update(counter_TI)
    kept = samples.result().flatten()
    assert abs(float(kept.mean()) / 10_000 - 1) < 0.05
    assert (kept < 10_000).float().mean().item() > 0.45


def test_short_streams_give_only_the_rows_there_were() -> None:
    samples = Samples(12, rows=50)
    samples.update(X_TI[:7])
    assert torch.equal(samples.result(), X_TI[:7])


def test_only_declared_statistics_are_gathered() -> None:
    made = accumulators_for({Statistic.INPUT_GRAM, Statistic.OUTPUT_GRADIENT}, 12)
    assert [item.statistic for item in made] == [Statistic.INPUT_GRAM]
