"""mix formats: names, shapes, bytes, and outputs in their order."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from blockwright.errors import CandidateError, FormatError
from blockwright.formats.mix import MixFormat, MixLinear
from blockwright.methods.quantize.mixllm import Mixllm
from blockwright.types import MixedRowsSolution, Statistics


def solved(name: str, shape: tuple[int, int] = (50, 64)) -> tuple[MixFormat, MixedRowsSolution]:
    """Every third row has the largest gradients."""
    W = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.02
    G = torch.ones(shape[0])
    G[::3] = 100
    seen = Statistics(tokens=9, input_gram=torch.eye(shape[1]), output_gradient=G)
    format = MixFormat.parse(name)
    return format, Mixllm().solve(W, seen, format)


def packed(name: str, shape: tuple[int, int] = (50, 64)) -> MixLinear:
    format, solution = solved(name, shape)
    return format.pack(solution, torch.ones(shape[0]), torch.bfloat16)


@pytest.mark.parametrize(
    "name", ["mix-p0-g64", "mix-p91-g64", "mix-p10", "mix-p10-g16", "mix4-g64"]
)
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(CandidateError, match=r"did you mean 'mix-p10-g128'\?"):
        MixFormat.parse(name)


def test_settings_and_shapes_that_cannot_be_are_refused() -> None:
    with pytest.raises(FormatError, match="0% of the rows wide"):
        MixFormat(0, 64)
    with pytest.raises(FormatError, match="96 inputs; use mix-p10-g32"):
        MixFormat(10, 64).check_shape((8, 96), "site")
    with pytest.raises(FormatError, match="40 inputs; use int4-row"):
        MixFormat(10, 64).check_shape((8, 40), "site")
    with pytest.raises(FormatError, match="1 outputs cannot be of two kinds; use int4-g64 or int8"):
        MixFormat(10, 64).check_shape((1, 64), "site")


@pytest.mark.parametrize("shape", [(2, 32), (7, 64), (1000, 32)])
def test_every_shape_that_is_taken_has_rows_of_both_kinds(shape: tuple[int, int]) -> None:
    for percent in (1, 10, 90):
        format = MixFormat(percent, 32)
        format.check_shape(shape, "site")
        parts = format.part_shapes(shape)
        assert min(rows for rows, _ in parts.values()) >= 1
        assert sum(rows for rows, _ in parts.values()) == shape[0]


def test_bits_per_weight_follow_the_formula() -> None:
    bits = 0.9 * (4 + 20 / 128) + 0.1 * (8 + 16 / 128) + 1 / 2048
    stored = MixFormat.parse("mix-p10-g128").stored_bytes((2000, 2048))
    assert stored * 8 == pytest.approx(bits * 2000 * 2048)


def test_wide_rows_are_the_felt_ones_and_outputs_stand_in_their_order() -> None:
    _, solution = solved("mix-p20-g32")
    assert int(solution.is_wide_O.sum()) == 10
    assert set(solution.is_wide_O.nonzero().flatten().tolist()) <= set(range(0, 50, 3))
    module = packed("mix-p20-g32")
    W_hat = module.dequantize()
    assert torch.equal(W_hat, solution.weight())
    assert torch.equal(W_hat[solution.is_wide_O], solution.wide.weight())
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    expected = F.linear(x.float(), W_hat, torch.ones(50))
    for y in (module(x), module.prepare()(x), module.restore()(x)):
        assert (y - expected).norm() < 1e-2 * expected.norm()


def test_a_solution_with_other_rows_wide_is_refused() -> None:
    _, solution = solved("mix-p20-g32")
    with pytest.raises(ValueError, match="10 wide rows, 5 needed"):
        MixFormat(10, 32).pack(solution, None, torch.bfloat16)
