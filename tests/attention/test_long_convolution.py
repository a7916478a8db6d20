"""Long convolutions: Monarch products against the FFT, and against the sum."""

from __future__ import annotations

import pytest
import torch

from blockwright.attention.long_convolution import Monarch, dft, fft_convolution


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_it_is_the_causal_sum() -> None:
    u, k = normal(2, 3, 20), normal(3, 7, seed=1)
    expected = torch.zeros_like(u)
    for tap in range(7):
        expected[..., tap:] += k[:, tap, None] * u[..., : 20 - tap]
    torch.testing.assert_close(fft_convolution(u, k), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (8, 32), (64, 16), (24, 10)])
def test_monarch_products_convolve(rows: int, columns: int) -> None:
    tokens = rows * columns // 2
    u, k = normal(2, 3, tokens - 1), normal(3, tokens - 3, seed=1)
    found = Monarch(rows, columns).convolve(u, k)
    expected = fft_convolution(u, k)
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_the_spectrum_is_in_its_own_order() -> None:
    x, plan = normal(64), Monarch(4, 16)
    assert torch.allclose(plan.transform(x).mT.flatten(), torch.fft.fft(x), atol=1e-4)
    assert torch.allclose(dft(8) @ x[:8].to(torch.complex64), torch.fft.fft(x[:8]), atol=1e-5)


def test_columns_left_out_are_frequencies_at_zero_and_are_not_computed() -> None:
    u, k, plan = normal(1, 2, 128), normal(2, 128, seed=1), Monarch(16, 16, kept=2)
    index = torch.arange(256)
    column = index // 16
    low = (column < 2) | (column >= 14)
    spectrum = torch.fft.fft(u, n=256) * torch.fft.fft(k, n=256) * low
    expected = torch.fft.ifft(spectrum)[..., :128].real
    torch.testing.assert_close(plan.convolve(u, k), expected, rtol=1e-4, atol=1e-4)
    whole, kept = Monarch(16, 16).products(), plan.products()
    assert kept[1] / whole[1] == 0.25


def test_taps_that_are_cut_off_are_taps_at_zero() -> None:
    u, k = normal(1, 2, 100), normal(2, 100, seed=1)
    zeroed = k.clone()
    zeroed[:, 30:] = 0
    short, long = Monarch(16, 16).convolve(u, k[:, :30]), Monarch(16, 16).convolve(u, zeroed)
    torch.testing.assert_close(short, long, rtol=1e-5, atol=1e-5)


def test_a_transform_that_would_wrap_is_refused() -> None:
    with pytest.raises(ValueError, match="need a transform of 39, this one has 32"):
        Monarch(4, 8).convolve(normal(1, 1, 20), normal(1, 20))
