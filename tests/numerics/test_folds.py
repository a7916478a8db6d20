"""Scale folds are exact in the stored dtype."""

from __future__ import annotations

import pytest
import torch

from blockwright.numerics.folds import fold_scale


def scales(features: int) -> torch.Tensor:
    return torch.exp2(4 * torch.rand(features, generator=torch.Generator().manual_seed(1)) - 2)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_what_stands_is_divided_by_exactly_the_scale_that_is_returned(
    offset: float, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(512, generator=generator) * 0.3 + (1 - offset)).to(dtype)
    folded = fold_scale([weight], [offset], scales(512))
    (stored,) = folded.parameters
    assert stored.dtype == dtype
    restored = (offset + stored.float()) * folded.t_I
    torch.testing.assert_close(restored, offset + weight.float(), rtol=1e-6, atol=1e-7)
    assert (folded.t_I > 0).all()
    usual = (offset + weight.float()).abs() > 0.1
    torch.testing.assert_close(folded.t_I[usual], scales(512)[usual], rtol=0.2, atol=0)


def test_a_bias_is_divided_by_the_same_scale_within_its_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(2, 256, generator=generator).bfloat16()
    folded = fold_scale([weight, bias], [0.0, 0.0], scales(256))
    exact = bias.float() / folded.t_I
    torch.testing.assert_close(folded.parameters[1].float(), exact, rtol=2**-8, atol=0)


def test_features_whose_parameter_is_zero_keep_theirs() -> None:
    weight = torch.tensor([0.0, 1.0, 1e-38])
    folded = fold_scale([weight], [0.0], torch.tensor([3.0, 3.0, 1e10]))
    assert folded.t_I.tolist() == [1.0, pytest.approx(3.0), 1.0]
    assert folded.parameters[0].tolist() == [0.0, pytest.approx(1 / 3), pytest.approx(1e-38)]


def test_a_scale_of_one_changes_no_bit() -> None:
    weight = torch.randn(64, generator=torch.Generator().manual_seed(0)).bfloat16()
    for offset in (0.0, 1.0):
        folded = fold_scale([weight], [offset], torch.ones(64))
        assert torch.equal(folded.t_I, torch.ones(64)) or offset == 1.0
        change = (offset + folded.parameters[0].float()) * folded.t_I - offset - weight.float()
        assert change.abs().max() < 1e-6
