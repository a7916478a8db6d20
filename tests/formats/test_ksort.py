"""ksort: the same product as the values in their own order, and the order's bytes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from blockwright.errors import CandidateError, FormatError
from blockwright.formats.ksort import KsortFormat, KsortLinear
from blockwright.methods.quantize.ksort import Ksort
from blockwright.registry import format_named
from blockwright.types import PackedFormat, Statistics, ValueFormat


def weight(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def packed(name: str, W: Tensor) -> KsortLinear:
    format = format_named(name)
    assert isinstance(format, KsortFormat)
    return format.pack(Ksort().solve(W, Statistics(tokens=0), format), None, torch.bfloat16)


def test_the_order_is_that_of_column_norms() -> None:
    W = weight(16, 64)
    norms = W.norm(dim=0)
    order = packed("ksort+bfp4-b32", W).order.long()
    assert (norms[order].diff() <= 0).all()
    assert torch.equal(order.sort().values, torch.arange(64))


@pytest.mark.parametrize("name", ["ksort+bf16", "ksort+bfp5-b32", "ksort+int8"])
def test_weights_and_products_stand_in_the_original_order(name: str) -> None:
    W, x = weight(16, 64), weight(5, 64).bfloat16()
    module, values = packed(name, W), format_named(name.removeprefix("ksort+"))
    assert isinstance(values, ValueFormat)
    order = module.order.long()
    expected = values.nearest(W[:, order]).weight()
    assert torch.equal(module.dequantize()[:, order], expected)
    torch.testing.assert_close(module(x).float(), x.float() @ module.dequantize().T, rtol=0.02,
                               atol=0.1)  # fmt: skip


def test_the_order_takes_two_bytes_per_input_or_four_where_they_are_many() -> None:
    format = KsortFormat()
    for inputs, each in ((1 << 15, 2), (1 << 16, 4)):
        extra = format.stored_bytes((8, inputs)) - format.values.stored_bytes((8, inputs))
        assert extra == each * inputs


def test_other_names_and_shapes_are_refused() -> None:
    with pytest.raises(CandidateError, match=r"did you mean 'ksort\+bfp4-b32'"):
        format_named("ksort3")
    format = format_named("ksort+bfp4-b32")
    assert isinstance(format, PackedFormat)
    with pytest.raises(FormatError, match="group size 32 does not divide 40 inputs"):
        format.check_shape((8, 40), "q_proj")
