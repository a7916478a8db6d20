"""bf16: the plain values."""

from __future__ import annotations

import pytest
import torch

from blockwright.errors import CandidateError, FormatError, NumericalError
from blockwright.registry import format_named
from blockwright.types import DenseSolution, PackedFormat, ValueFormat


def bf16() -> ValueFormat:
    format = format_named("bf16")
    assert isinstance(format, ValueFormat)
    return format


def test_values_are_the_nearest_bfloat16() -> None:
    W = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    solution = bf16().nearest(W)
    assert torch.equal(solution.weight(), W.bfloat16().float())
    packed = bf16().pack(solution, None, torch.float32)
    x = torch.randn(2, 7, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(packed(x), x @ W.bfloat16().float().T)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3.4e38])
def test_what_bfloat16_cannot_hold_is_refused(value: float) -> None:
    with pytest.raises(NumericalError, match="not finite, or too large"):
        bf16().nearest(torch.full((1, 2), value))


def test_other_names_shapes_and_dtypes_are_refused() -> None:
    with pytest.raises(CandidateError, match="did you mean 'bf16'"):
        format_named("bf17")
    with pytest.raises(FormatError, match=r"lm_head: a weight of 0 x 4 is empty"):
        bf16().check_shape((0, 4), "lm_head")
    format = format_named("bf16")
    assert isinstance(format, PackedFormat)
    with pytest.raises(TypeError, match="bfloat16"):
        format.pack(DenseSolution(values_OI=torch.ones(2, 2)), None, torch.bfloat16)
