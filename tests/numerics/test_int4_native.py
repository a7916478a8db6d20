"""The native int4 kernel: exact codes, and products equal to the dequantized weight's."""

from __future__ import annotations

import copy

import pytest
import torch

from blockwright.numerics.int4_native import NativeInt4Matrix, native_int4_bytes
from tests.numerics.test_int4_cpu import weight

ROUNDED = 2.0**-8
"""Of one rounding to bfloat16, relative."""


pytestmark = pytest.mark.usefixtures("native_kernel")


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("out_features", [1, 32, 80])
def test_everything_that_was_packed_comes_back_exactly(out_features: int, bits: int) -> None:
    for in_features, group in ((32, 32), (96, 32), (128, 64), (256, 128), (512, 256)):
        codes, scale, zero, W = weight(out_features, in_features, group, bits)
        matrix = NativeInt4Matrix.pack(codes, scale, zero, bits=bits, group=group)
        index = torch.tensor([out_features - 1, 0, out_features // 2])
        assert torch.equal(matrix.codes(), codes)
        assert torch.equal(matrix.scale(), scale)
        assert torch.equal(matrix.zero_point(), zero)
        assert torch.equal(matrix.dequantize(), W)
        assert torch.equal(matrix.rows(index), W[index])
        shape = (out_features, in_features)
        assert matrix.nbytes == native_int4_bytes(shape, bits=bits, group=group)


@pytest.mark.parametrize(
    ("out_features", "bits", "threads"),
    [(1, 4, 1), (33, 2, 1), (33, 5, 1), (64, 3, 1), (200, 4, 2), (200, 8, 1), (200, 6, 2)],
)
def test_products_are_the_dequantized_weights_rounded_once(
    out_features: int, bits: int, threads: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for in_features, group in ((96, 32), (128, 64), (384, 128), (512, 256)):
            codes, scale, zero, W = weight(out_features, in_features, group, bits)
            matrix = NativeInt4Matrix.pack(codes, scale, zero, bits=bits, group=group)
            for tokens in (*range(1, 10), 21):
                x = torch.randn(tokens, in_features, generator=generator).bfloat16()
                expected = x.double() @ W.double().t()
                size = x.double().abs() @ W.double().abs().t()
                y = matrix.product(x)
                assert y.shape == (tokens, out_features)
                error = (y.double() - expected).abs()
                assert (error <= ROUNDED * expected.abs() + 1e-5 * size).all()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8])
def test_offsets_come_back_exactly_and_are_added(bits: int) -> None:
    codes, scale, _, _ = weight(80, 128, 32, bits)
    offset = torch.randn(scale.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    centered = codes.float().view(80, 4, 32) - (1 << (bits - 1))
    W = (centered * scale.float()[..., None] + offset.float()[..., None]).view(80, 128)
    matrix = NativeInt4Matrix.with_offset(codes, scale, offset, bits=bits, group=32)
    index = torch.tensor([79, 0, 40])
    assert torch.equal(matrix.codes(), codes)
    assert torch.equal(matrix.scale(), scale)
    assert torch.equal(matrix.offsets(), offset)
    assert torch.equal(matrix.dequantize(), W)
    assert torch.equal(matrix.rows(index), W[index])
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(2)).bfloat16()
    expected = x.float() @ W.t()
    assert (matrix.product(x) - expected).norm() < ROUNDED * expected.norm()


@pytest.mark.parametrize("offset", [False, True])
def test_the_unpacked_product_is_the_plain_one(offset: bool) -> None:
    codes, scale, zero, _ = weight(80, 128, 32, 4)
    make = NativeInt4Matrix.with_offset if offset else NativeInt4Matrix.pack
    matrix = make(codes, scale, zero, bits=4, group=32)
    x = torch.randn(5, 128, generator=torch.Generator().manual_seed(2))
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2)):
        y = matrix.dense_product(x.to(dtype))
        expected = x.to(dtype).float() @ matrix.dequantize().t()
        assert y.dtype == dtype
        assert (y - expected).norm() < tolerance * expected.norm()


def test_large_weights_are_unpacked_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockwright.numerics.int4_native.CHUNK_WEIGHTS", 64 * 64)
    codes, scale, zero, W = weight(200, 64, 32, 4)
    matrix = NativeInt4Matrix.pack(codes, scale, zero, bits=4, group=32)
    assert torch.equal(matrix.codes(), codes)
    assert torch.equal(matrix.dequantize(), W)
    x = torch.randn(5, 64)
    assert torch.allclose(matrix.dense_product(x), x @ W.t(), rtol=1e-4, atol=1e-4)


def test_the_operator_has_a_shape_without_data_and_the_same_values() -> None:
    codes, scale, zero, _ = weight(80, 128, 32, 4)
    m = NativeInt4Matrix.pack(codes, scale, zero, bits=4, group=32)
    x = torch.randn(5, 128).bfloat16()
    rest = (80, 32, 4, False)
    y = torch.ops.blockwright.int4_product(x, m.words, m.scale_zero, *rest)
    assert torch.equal(y, m.product(x))
    meta = (each.to("meta") for each in (x, m.words, m.scale_zero))
    shape = torch.ops.blockwright.int4_product(*meta, *rest)
    assert (shape.shape, shape.dtype) == (y.shape, y.dtype)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_many_tokens_multiply_the_weight_rounded_once(bits: int, dtype: torch.dtype) -> None:
    codes, scale, zero, W = weight(80, 128, 64, bits)
    matrix = NativeInt4Matrix.pack(codes, scale, zero, bits=bits, group=64)
    y = matrix.dense_product(torch.eye(128, dtype=dtype))
    assert torch.equal(y, W.t().to(dtype))


def test_a_copy_multiplies_its_own_tensors() -> None:
    codes, scale, zero, W = weight(80, 128, 32, 4)
    matrix = NativeInt4Matrix.pack(codes, scale, zero, bits=4, group=32)
    eye = torch.eye(128).bfloat16()
    assert torch.equal(matrix.product(eye), W.t().bfloat16())
    copied = copy.deepcopy(matrix)
    matrix.words.zero_()
    assert torch.equal(copied.product(eye), W.t().bfloat16())


@pytest.mark.parametrize("shape", [(128,), (1, 128), (2, 3, 128)])
def test_leading_dimensions_stay(shape: tuple[int, ...]) -> None:
    codes, scale, zero, W = weight(80, 128, 32, 4)
    x = torch.randn(shape).bfloat16()
    y = NativeInt4Matrix.pack(codes, scale, zero, bits=4, group=32).product(x)
    torch.testing.assert_close(y, (x.float() @ W.t()).bfloat16(), rtol=2e-2, atol=2e-2)
