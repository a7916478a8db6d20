"""bin formats: names, shapes, bytes, and columns where they belong."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from blockwright.errors import CandidateError, FormatError
from blockwright.formats.bin import BinFormat, BinLinear
from blockwright.methods.quantize.ptq161 import Ptq161
from blockwright.numerics.int4_cpu import tile_layout
from blockwright.types import SalientSolution, Statistics


def solved(percent: int = 20, shape: tuple[int, int] = (50, 128)) -> SalientSolution:
    """The last columns have the largest inputs."""
    random = torch.Generator().manual_seed(0)
    W = torch.randn(shape, generator=random) * 0.02
    X = torch.randn(400, shape[1], generator=random) * torch.linspace(0.5, 3, shape[1])
    seen = Statistics(
        tokens=400, input_gram=X.T @ X / 400, input_absmax=torch.arange(shape[1]).float()
    )
    return Ptq161().solve(W, seen, BinFormat(percent))


def packed(percent: int = 20, shape: tuple[int, int] = (50, 128)) -> BinLinear:
    bias = torch.linspace(-1, 1, shape[0])
    return BinFormat(percent).pack(solved(percent, shape), bias, torch.bfloat16)


@pytest.mark.parametrize("name", ["bin-p0", "bin-p91", "bin", "bin1-p20", "bin-p20-g64"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(CandidateError, match=r"did you mean 'bin-p20'\?"):
        BinFormat.parse(name)


def test_settings_and_shapes_that_cannot_be_are_refused() -> None:
    with pytest.raises(FormatError, match="0% of the inputs in 4 bits: allowed are 1 to 90"):
        BinFormat(0)
    with pytest.raises(FormatError, match="8 x 63 has no 64 inputs to part; use int4-row or"):
        BinFormat(20).check_shape((8, 63), "site")
    with pytest.raises(FormatError, match="0 x 64"):
        BinFormat(20).check_shape((0, 64), "site")


@pytest.mark.parametrize("in_features", [64, 65, 100, 256, 2048])
def test_every_shape_that_is_taken_has_columns_of_both_kinds(in_features: int) -> None:
    for percent in (1, 20, 90):
        kept = BinFormat(percent).kept(in_features)
        assert kept % 32 == 0
        assert 0 < kept < in_features


def test_bits_per_weight_follow_the_formula() -> None:
    O, I, K = 1000, 2048, 416  # noqa: E741
    format = BinFormat(20)
    assert format.kept(I) == K
    bits = O * (4 * K + (I - K) + 16 + 4 + 32) + I + 16 * (I - K)
    assert format.stored_bytes((O, I)) * 8 == bits
    assert bits / (O * I) < 1.67


def test_columns_in_4_bits_are_those_of_the_largest_inputs_and_stand_in_their_place() -> None:
    solution, module = solved(), packed()
    assert solution.columns_K.tolist() == list(range(96, 128))
    W_hat = module.dequantize()
    assert torch.equal(W_hat, solution.weight())
    assert torch.equal(W_hat[:, 96:], solution.salient.weight())
    ones = W_hat[:, :96] / solution.factor_J
    for row in ones:
        assert row.max() - row.min() > 0
        assert ((row - row.max()).abs().minimum((row - row.min()).abs()) < 1e-6).all()


@pytest.mark.parametrize("shape", [(50, 128), (7, 100)])
@pytest.mark.parametrize("tokens", [1, 3, 100])
def test_products_are_those_of_the_dequantized_weight(shape: tuple[int, int], tokens: int) -> None:
    module = packed(30, shape)
    x = torch.randn(tokens, shape[1], generator=torch.Generator().manual_seed(1))
    expected = F.linear(x, module.dequantize(), torch.linspace(-1, 1, shape[0]))
    for y in (module(x.bfloat16()), module.prepare()(x.bfloat16()), module(x)):
        assert (y - expected).norm() < 1e-2 * expected.norm()
    with pytest.raises(ValueError, match="64 inputs given"):
        module(torch.ones(1, 64))


@pytest.mark.skipif(tile_layout() is None, reason="no int4 kernel on this machine")
def test_both_parts_are_on_the_int4_kernel_and_say_that_4_bits_are_resident() -> None:
    module = packed()
    assert module.kernel == "int4 + int4"
    assert module.format.limits.packed_on_cpu
    assert module.format.limits.resident_bits == 4


def test_a_solution_with_another_number_of_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="32 columns in 4 bits, 64 needed"):
        BinFormat(50).pack(solved(20), None, torch.bfloat16)


def test_values_and_factors_are_trained() -> None:
    module = packed()
    names = ("factor", "salient.scale", "signs.scale", "signs.offset")
    for name in names:
        module.replace_stored(name, module.stored_tensor(name).float().requires_grad_())
    x = torch.randn(4, 128, generator=torch.Generator().manual_seed(1))
    module(x).sum().backward()
    for name in names:
        found = module.stored_tensor(name).grad
        assert found is not None
        assert found.any()
