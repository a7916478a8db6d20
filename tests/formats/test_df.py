"""df11: every bit comes back, from as many bytes as the codes take."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from blockwright.errors import CandidateError, FormatError
from blockwright.formats.df import DfFormat, DfLinear
from blockwright.numerics.dfloat11 import to_bytes
from blockwright.types import DenseSolution


def normal(*shape: int, seed: int = 0) -> Tensor:
    return (0.02 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).bfloat16()


def packed(values: Tensor, bias: Tensor | None = None) -> DfLinear:
    return DfFormat().pack(DenseSolution(values_OI=values), bias, torch.bfloat16)


def same_bits(first: Tensor, second: Tensor) -> bool:
    return torch.equal(first.view(torch.int16), second.view(torch.int16))


def test_what_no_code_shrinks_is_stored_as_it_is() -> None:
    bits = torch.randint(-(1 << 15), 1 << 15, (64, 64), generator=torch.Generator().manual_seed(0))
    values = bits.to(torch.int16).view(torch.bfloat16)
    module = packed(values)
    assert module.stored_bytes == DfFormat().stored_bytes((64, 64)) == 2 * 64 * 64
    assert same_bits(module.exact(), values)


def test_products_are_bit_for_bit_the_original_linears() -> None:
    values, bias = normal(48, 128), normal(48)
    module, x = packed(values, bias), normal(5, 128, seed=1)
    for tokens in (x, x[:1]):
        assert same_bits(module(tokens), F.linear(tokens, values, bias))
    with torch.inference_mode():
        assert same_bits(packed(values, bias)(x), F.linear(x, values, bias))


def test_moved_and_converted_it_is_not_coded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    values = normal(16, 64)
    module = packed(values).prepare()
    monkeypatch.setattr("blockwright.formats.df.to_bytes", None)
    module.to(torch.float32)
    assert module.dtype == torch.float32
    assert same_bits(module.exact(), values)


def test_bytes_of_another_weight_are_refused() -> None:
    module = DfFormat(len(to_bytes(normal(16, 64)))).empty(
        (16, 72), bias=False, dtype=torch.bfloat16
    )
    module.load_stored({"weight": to_bytes(normal(16, 64))})
    with pytest.raises(FormatError, match=r"no weight of \[16, 72\]"):
        module.dequantize()


def test_other_names_shapes_and_dtypes_are_refused() -> None:
    with pytest.raises(CandidateError, match="did you mean 'df11'"):
        DfFormat.parse("df12")
    with pytest.raises(FormatError, match=r"lm_head: a weight of 0 x 4 is empty"):
        DfFormat().check_shape((0, 4), "lm_head")
    with pytest.raises(TypeError, match="bfloat16"):
        DfFormat().pack(DenseSolution(values_OI=torch.ones(2, 2)), None, torch.bfloat16)
