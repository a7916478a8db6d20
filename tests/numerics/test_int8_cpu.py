"""The int8 kernel: what goes in comes out."""

from __future__ import annotations

import pytest
import torch

from blockwright.numerics import int8_cpu
from blockwright.numerics.int8_cpu import Int8Matrix


@pytest.mark.parametrize("bits", [5, 6, 7, 8])
@pytest.mark.parametrize("shape", [(1, 1), (7, 33), (33, 7), (5, 16), (7, 48), (64, 128)])
def test_codes_come_back_and_products_agree(
    bits: int, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_cpu, "CHUNK_WEIGHTS", 500)
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 1 << bits, shape, generator=generator, dtype=torch.uint8)
    scale = torch.rand(shape[0], generator=generator).add(0.01).bfloat16()
    matrix = Int8Matrix.pack(codes, scale, bits=bits)
    W = (codes.float() - (1 << (bits - 1))) * scale.float()[:, None]
    index = torch.tensor([shape[0] - 1, 0])
    assert torch.equal(matrix.codes(), codes)
    assert torch.equal(matrix.scale(), scale[:, None])
    assert (matrix.zero_point() == 1 << (bits - 1)).all()
    assert torch.equal(matrix.dequantize(), W)
    assert torch.equal(matrix.rows(index), W[index])
    for tokens in (1, 3, 33):
        x = torch.randn(tokens, shape[1], generator=generator).bfloat16()
        expected = x.float() @ W.t()
        assert (matrix.dense_product(x) - expected).norm() < 1e-2 * expected.norm()
        if tokens < matrix.many_tokens:
            assert (matrix.product(x) - expected).norm() < 1e-2 * expected.norm()
        assert (matrix.dense_product(x.float()) - expected).norm() < 1e-5 * expected.norm()


def test_inputs_on_which_the_kernel_would_crash_never_reach_it() -> None:
    matrix = Int8Matrix.pack(torch.zeros((4, 40), dtype=torch.uint8), torch.ones(4), bits=8)
    assert matrix.many_tokens == 0
    with pytest.raises(ValueError, match="cannot take 40 inputs"):
        matrix.product(torch.zeros(1, 40, dtype=torch.bfloat16))
