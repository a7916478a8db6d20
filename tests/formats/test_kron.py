"""kron formats: names, cuts, bytes, both ways to multiply."""

from __future__ import annotations

import pytest
import torch

from blockwright.errors import CandidateError, FormatError
from blockwright.formats.kron import KronFormat, KronLinear
from blockwright.numerics.kronecker import scaled_svd
from blockwright.registry import format_named
from blockwright.types import KroneckerSolution, KroneckerSplit


def kron_format(name: str) -> KronFormat:
    format = format_named(name)
    assert isinstance(format, KronFormat)
    return format


def packed(name: str, shape: tuple[int, int] = (48, 128)) -> KronLinear:
    format = kron_format(name)
    split = format.split(shape)
    W = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = scaled_svd(W, torch.eye(shape[1]), split)
    left, right = map(format.values.nearest, split.to_parts(found.A_PR, found.B_RQ))
    solution = KroneckerSolution(split=split, left=left, right=right)
    return format.pack(solution, torch.ones(shape[0]).bfloat16(), torch.bfloat16)


def test_a_weight_is_the_sum_of_kronecker_products() -> None:
    random = torch.Generator().manual_seed(0)
    A, B = torch.randn(3, 4, 2, generator=random), torch.randn(3, 5, 6, generator=random)
    split = KroneckerSplit(4, 2, 5, 6, 3)
    left, right = split.to_parts(A.reshape(3, 8).T, B.reshape(3, 30))
    expected = sum(torch.kron(a, b) for a, b in zip(A, B, strict=True))
    assert isinstance(expected, torch.Tensor)
    torch.testing.assert_close(split.weight(left, right), expected)
    assert torch.equal(split.right_factors(right), B.reshape(3, 30))


def test_the_rearrangement_is_undone() -> None:
    W, split = torch.randn(20, 12), KroneckerSplit(4, 2, 5, 6, 1)
    blocks = split.to_blocks(W)
    assert torch.equal(blocks[1], W[:5, 6:].flatten())
    assert torch.equal(split.from_blocks(blocks), W)


@pytest.mark.parametrize(
    ("name", "shape", "split"),
    [
        ("kron2-p50", (256, 512), KroneckerSplit(256, 2, 1, 256, 85)),
        ("kron4-r16", (256, 512), KroneckerSplit(256, 4, 1, 128, 16)),
        ("kron16x32-p50", (256, 512), KroneckerSplit(16, 32, 16, 16, 85)),
        ("kron2-p50+int4-g32", (256, 512), KroneckerSplit(256, 2, 1, 256, 80)),
    ],
)
def test_cuts(name: str, shape: tuple[int, int], split: KroneckerSplit) -> None:
    assert kron_format(name).split(shape) == split


@pytest.mark.parametrize("shape", [(48, 128), (2048, 5632), (4096, 1024)])
@pytest.mark.parametrize("kind", ["kron2", "kron4", "kron16x8"])
@pytest.mark.parametrize("percent", [5, 50, 99])
def test_percent_is_the_share_of_the_dense_bytes_never_more(
    shape: tuple[int, int], kind: str, percent: int
) -> None:
    format = kron_format(f"{kind}-p{percent}")
    split = format.split(shape)
    numbers = split.rows * split.columns + split.block_rows * split.block_columns
    assert format.stored_bytes(shape) == 2 * split.terms * numbers
    assert split.terms * numbers <= percent * shape[0] * shape[1] / 100
    step = 16 if split.terms >= 256 else 1
    assert split.terms % step == 0
    assert split.terms + step > format.most_rank(shape) or (
        (split.terms + step) * numbers > percent * shape[0] * shape[1] / 100
    )


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("kron3-p50", (64, 128), "128 in features are not 3 equal parts; .* 1, 2, 4, 8, 16"),
        ("kron5x2-p50", (64, 128), "64 out features are not 5 equal parts"),
        ("kron2-r65", (64, 128), "rank 65 is above the 64 .* use kron2-r64 at most"),
        ("kron2-p1", (64, 64), "1% of 64 x 64 is less than one rank"),
        ("kron2-r5+int4-g32", (64, 128), "left of kron2-r5: group size 32 does not divide 10"),
    ],
)
def test_shapes_it_cannot_take_say_what_fits(
    name: str, shape: tuple[int, int], reason: str
) -> None:
    with pytest.raises(FormatError, match=f"q_proj.*{reason}"):
        kron_format(name).check_shape(shape, "q_proj")


@pytest.mark.parametrize("name", ["kron", "kron-p50", "kron2", "kron0-p50", "kron2x-r4"])
def test_unknown_names_say_what_is_allowed(name: str) -> None:
    with pytest.raises(CandidateError, match="did you mean 'kron2-p50'"):
        format_named(name)


@pytest.mark.parametrize("name", ["kron2-p50", "kron4-r16", "kron8x16-p50", "kron2-r16+int4-g32"])
def test_both_ways_to_multiply_agree(name: str) -> None:
    module = packed(name)
    x = torch.randn(2, 3, 128, generator=torch.Generator().manual_seed(1)).bfloat16()
    exact = x.float() @ module.dequantize().T
    for y in (module.factored_product(x), module(x) - 1):
        assert y.shape == (2, 3, 48)
        assert (y.float() - exact).norm() < 2e-2 * exact.norm()


def test_the_weight_is_formed_only_where_that_takes_fewer_multiplications() -> None:
    halves, blocks = packed("kron2-p25"), packed("kron8x16-p50")
    assert all(halves.is_factored(tokens) for tokens in (1, 16, 4096))
    assert blocks.is_factored(1)
    assert not blocks.is_factored(4096)
    split = blocks.split
    tokens = 4096
    assert tokens * split.factored_products > (split.terms + tokens) * 48 * 128


def test_the_formed_weight_gives_gradients_too() -> None:
    module = packed("kron8x16-p50")
    factor = module.part("left").get_buffer("weight").requires_grad_()
    x = torch.randn(4096, 128, generator=torch.Generator().manual_seed(1)).bfloat16()
    for tokens in (1, 4096):
        (gradient,) = torch.autograd.grad(module(x[:tokens]).float().sum(), factor)
        assert gradient.abs().sum() > 0
