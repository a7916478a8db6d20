"""bfp: the formula's values, the formula's bytes, and int kernels that give the same product."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from blockwright.errors import CandidateError, FormatError, NumericalError
from blockwright.formats._grouped import GroupedLinear
from blockwright.formats.bfp import BfpFormat
from blockwright.formats.int import IntFormat
from blockwright.numerics.block_floating_point import round_to_bfp
from blockwright.registry import format_named
from blockwright.types import GridSolution


def weight(*shape: int) -> Tensor:
    return 0.02 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def packed(name: str, W: Tensor) -> GroupedLinear:
    format = BfpFormat.parse(name)
    grid = format.fit_grid(W)
    solution = GridSolution(codes_OI=grid.encode(W, slice(None)), grid=grid)
    return format.pack(solution, None, torch.bfloat16)


@pytest.mark.parametrize("name", BfpFormat.examples())
def test_values_are_block_floating_point(name: str) -> None:
    format, W = BfpFormat.parse(name), weight(17, 256)
    W[3, :128] = 0
    expected = round_to_bfp(W, format.bits, format.group_size)
    module = packed(name, W)
    assert torch.equal(module.dequantize(), expected)
    assert torch.equal(module.prepare().dequantize(), expected)


@pytest.mark.parametrize("name", BfpFormat.examples())
def test_bytes_are_mantissas_and_an_exponent_per_group(name: str) -> None:
    format = BfpFormat.parse(name)
    assert 8 * format.stored_bytes((64, 256)) / (64 * 256) == format.bits + 8 / format.group_size


def test_the_kernel_is_that_of_integers() -> None:
    for name in ("bfp4-b32", "bfp8-b128"):
        module, format = packed(name, weight(32, 256)), BfpFormat.parse(name)
        integers = IntFormat(format.bits, format.group_size, symmetric=True)
        empty = integers.empty((32, 256), bias=False, dtype=torch.bfloat16, device="cpu")
        assert module.kernel == empty.kernel


def test_other_names_and_shapes_are_refused() -> None:
    with pytest.raises(CandidateError, match="did you mean 'bfp4-b32'"):
        format_named("bfp3-b32")
    with pytest.raises(FormatError, match=r"q_proj: group size 64 does not divide 96 .* bfp4-b32"):
        BfpFormat(4, 64).check_shape((8, 96), "q_proj")
    with pytest.raises(FormatError, match=r"group size 32 does not divide 40 inputs; use int4"):
        BfpFormat(4, 32).check_shape((8, 40), "q_proj")
    with pytest.raises(FormatError, match="empty"):
        BfpFormat(4, 32).check_shape((0, 64), "q_proj")
    with pytest.raises(FormatError, match="allowed are 4 to 8"):
        BfpFormat(3, 32)


def test_scales_that_are_no_powers_of_two_are_refused() -> None:
    W = weight(8, 64)
    grid = IntFormat(4, 64, symmetric=True).fit_grid(W)
    solution = GridSolution(codes_OI=grid.encode(W, slice(None)), grid=grid)
    with pytest.raises(NumericalError, match="powers of two"):
        BfpFormat(4, 64).pack(solution, None, torch.bfloat16)
    with pytest.raises(NumericalError, match="not finite"):
        BfpFormat(4, 64).fit_grid(torch.full((8, 64), float("nan")))
