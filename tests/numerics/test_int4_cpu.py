"""The int4 kernel: what goes in comes out, on this machine's layout and on those of others."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from blockwright.numerics import int4_cpu
from blockwright.numerics.int4_cpu import Int4Matrix, kernel_group, tile_layout

ROWS = (1, 7, 16, 33, 48, 64, 80, 130)
needs_kernel = pytest.mark.skipif(
    tile_layout() is None, reason="no int4 CPU kernel on this machine"
)


def weight(out_features: int, in_features: int, group: int, bits: int) -> tuple[Tensor, ...]:
    """Codes, scale, zero point and the fp32 weight that they stand for."""
    generator = torch.Generator().manual_seed(out_features)
    groups = in_features // group
    codes = torch.randint(
        0, 1 << bits, (out_features, in_features), generator=generator, dtype=torch.uint8
    )
    scale = torch.rand((out_features, groups), generator=generator).add(0.01).bfloat16()
    zero = torch.randint(0, 1 << bits, (out_features, groups), generator=generator).float()
    W = (codes.float().view(out_features, groups, group) - zero[..., None]) * scale.float()[
        ..., None
    ]
    return codes, scale, zero, W.view(out_features, in_features)


def check_exact(out_features: int, in_features: int, group: int, bits: int) -> Int4Matrix:
    codes, scale, zero, W = weight(out_features, in_features, group, bits)
    matrix = Int4Matrix.pack(codes, scale, zero, bits=bits, group=group)
    index = torch.tensor([out_features - 1, 0, out_features // 2])
    assert torch.equal(matrix.codes(), codes)
    assert torch.equal(matrix.scale(), scale)
    assert torch.equal(matrix.zero_point(), zero)
    assert torch.equal(matrix.dequantize(), W)
    assert torch.equal(matrix.rows(index), W[index])
    return matrix


@needs_kernel
@pytest.mark.parametrize("bits", [2, 4, 5, 8])
@pytest.mark.parametrize("out_features", ROWS)
def test_codes_scales_and_zero_points_come_back_exactly(out_features: int, bits: int) -> None:
    for in_features, group in ((32, 32), (96, 32), (128, 64), (128, 128)):
        check_exact(out_features, in_features, group, bits)


@needs_kernel
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("out_features", ROWS)
@pytest.mark.parametrize("tokens", [1, 3, 33])
def test_products_agree_with_the_plain_one(out_features: int, bits: int, tokens: int) -> None:
    codes, scale, zero, W = weight(out_features, 128, 32, bits)
    matrix = Int4Matrix.pack(codes, scale, zero, bits=bits, group=32)
    x = torch.randn(tokens, 128, generator=torch.Generator().manual_seed(1)).bfloat16()
    expected = x.float() @ W.t()
    size = expected.norm()
    assert (matrix.product(x) - expected).norm() < 1e-2 * size
    assert (matrix.dense_product(x) - expected).norm() < 1e-2 * size
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float16, 2e-3)):
        y = matrix.dense_product(x.to(dtype))
        assert y.dtype == dtype
        assert (y.float() - expected).norm() < tolerance * size


@needs_kernel
@pytest.mark.parametrize("bits", [1, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("out_features", [7, 64, 80])
def test_offsets_come_back_exactly_and_are_added(out_features: int, bits: int) -> None:
    codes, scale, _, _ = weight(out_features, 128, 32, bits)
    offset = torch.randn(scale.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    centered = codes.float().view(out_features, 4, 32) - (1 << (bits - 1))
    W = (centered * scale.float()[..., None] + offset.float()[..., None]).view(out_features, 128)
    matrix = Int4Matrix.with_offset(codes, scale, offset, bits=bits, group=32)
    index = torch.tensor([out_features - 1, 0, out_features // 2])
    assert torch.equal(matrix.codes(), codes)
    assert torch.equal(matrix.scale(), scale)
    assert torch.equal(matrix.offsets(), offset)
    assert torch.equal(matrix.dequantize(), W)
    assert torch.equal(matrix.rows(index), W[index])
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(2)).bfloat16()
    expected = x.float() @ W.t()
    for y in (matrix.product(x), matrix.dense_product(x)):
        assert (y - expected).norm() < 1e-2 * expected.norm()


@needs_kernel
@pytest.mark.parametrize("zero", [0, 128])
@pytest.mark.parametrize("value", [0, 1, -1])
def test_a_group_of_one_value_drowns_no_other(zero: int, value: int) -> None:
    """Scale 1 beside weights of 0.02: the planes' shares of a flat group must not be large."""
    if zero + value < 0:
        pytest.skip("no such code")
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 256, (16, 128), generator=generator, dtype=torch.uint8)
    codes[:, :64] = zero + value
    scale = torch.tensor([[1.0 if value == 0 else 0.02, 1e-4]]).expand(16, 2).bfloat16()
    zeros = torch.full((16, 2), 128.0)
    zeros[:, 0] = zero
    matrix = Int4Matrix.pack(codes, scale, zeros, bits=8, group=64)
    assert torch.equal(matrix.zero_point(), zeros)
    x = torch.randn(3, 128, generator=generator).bfloat16()
    expected = x.float() @ matrix.dequantize().t()
    assert (matrix.product(x) - expected).norm() < 1e-2 * expected.norm()


@needs_kernel
def test_matrices_larger_than_a_working_chunk_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int4_cpu, "CHUNK_WEIGHTS", 64 * 64)
    check_exact(200, 64, 32, 4)
    check_exact(200, 64, 32, 8)


def test_groups_of_the_kernel() -> None:
    assert kernel_group(64, 128) == 64
    assert kernel_group(64, 96) is None
    assert kernel_group(0, 5632) == 256
    assert kernel_group(0, 96) == 32
    assert kernel_group(0, 48) is None


def tiled(rows: int, order: Callable[[int], list[int]]) -> Callable[[Tensor], Tensor]:
    """A packer for tiles of ``rows`` rows whose places hold the rows ``order(rows)``."""

    def convert(codes: Tensor) -> Tensor:
        out_features, in_features = codes.shape
        tiles = codes.view(out_features // rows, rows, in_features).transpose(1, 2)
        placed = tiles[..., order(rows)].to(torch.uint8)
        packed = placed[..., : rows // 2] | (placed[..., rows // 2 :] << 4)
        return packed.reshape(out_features, in_features // 2)

    return convert


def in_order(rows: int) -> list[int]:
    return list(range(rows))


def interleaved(rows: int) -> list[int]:
    return [*range(0, rows, 2), *range(1, rows, 2)]


@pytest.fixture
def fresh_probe() -> Iterator[None]:
    tile_layout.cache_clear()
    yield
    tile_layout.cache_clear()


@pytest.mark.usefixtures("fresh_probe")
@pytest.mark.parametrize("rows", [16, 32, 64, 128])
@pytest.mark.parametrize("order", [in_order, interleaved])
def test_layouts_of_other_machines_are_found_and_undone(
    rows: int, order: Callable[[int], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int4_cpu, "_convert", tiled(rows, order))
    monkeypatch.setattr(int4_cpu, "_multiplies", lambda: True)
    layout = tile_layout()
    assert layout is not None
    assert layout.rows == rows
    for bits in (4, 8):
        matrix = check_exact(rows + 5, 64, 32, bits)
        x = torch.randn(3, 64)
        assert torch.allclose(matrix.dense_product(x), x @ matrix.dequantize().t(), atol=1e-3)


def row_major(codes: Tensor) -> Tensor:
    return (codes[:, ::2] | (codes[:, 1::2] << 4)).to(torch.uint8)


def missing(codes: Tensor) -> Tensor:
    raise AttributeError("no such operator")


@pytest.mark.usefixtures("fresh_probe")
@pytest.mark.parametrize("convert", [row_major, missing])
def test_a_machine_with_another_picture_or_no_kernel_has_no_layout(
    convert: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int4_cpu, "_convert", convert)
    assert tile_layout() is None


@needs_kernel
@pytest.mark.usefixtures("fresh_probe")
def test_a_kernel_that_multiplies_in_another_order_is_not_trusted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(int4_cpu, "_convert", tiled(16, interleaved))
    assert tile_layout() is None
