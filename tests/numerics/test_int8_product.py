"""Products of 8-bit integers."""

from __future__ import annotations

import pytest
import torch

from blockwright.numerics import int8_product
from blockwright.numerics.int8_product import (
    MOST_INPUTS,
    integer_product,
    multiplies_integers,
    reference,
    round_tokens,
)

needs_kernel = pytest.mark.skipif(
    not multiplies_integers(), reason="no int8 product on this machine"
)


def test_tokens_are_rounded_by_half_a_step_and_zeros_stay() -> None:
    x = torch.randn(5, 33, generator=torch.Generator().manual_seed(0)).bfloat16()
    x[2] = 0
    codes, scale = round_tokens(x)
    assert codes.dtype == torch.int8
    assert codes.abs().amax(1).tolist() == [127, 127, 0, 127, 127]
    assert scale[2] == 1
    assert ((codes * scale - x.float()).abs() <= 0.5001 * scale).all()


@needs_kernel
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 40, 7), (3, 129, 16), (17, 16, 5), (64, 512, 33)])
def test_products_are_exact(shape: tuple[int, int, int]) -> None:
    tokens, inputs, outputs = shape
    generator = torch.Generator().manual_seed(inputs)
    q, W = (
        torch.randint(-127, 128, size, generator=generator).to(torch.int8)
        for size in ((tokens, inputs), (outputs, inputs))
    )
    assert torch.equal(integer_product(q, W), reference(q, W))


@needs_kernel
def test_the_largest_sums_do_not_overflow() -> None:
    q = torch.full((1, 4096), -127, dtype=torch.int8)
    assert integer_product(q, q).item() == 4096 * 127 * 127
    assert MOST_INPUTS * 127 * 127 < 2**31 <= (MOST_INPUTS + 1) * 127 * 127


def test_a_build_that_multiplies_wrongly_or_not_at_all_is_not_trusted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(*_: object) -> torch.Tensor:
        raise NotImplementedError("no int8 product")

    for product in (lambda q, W: reference(q, W) + 1, missing):
        multiplies_integers.cache_clear()
        monkeypatch.setattr(int8_product, "integer_product", product)
        assert not multiplies_integers()
    multiplies_integers.cache_clear()
