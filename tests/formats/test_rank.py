"""rank formats: names, ranks, bytes, errors, products."""

from __future__ import annotations

import pytest
import torch

from blockwright.errors import CandidateError, FormatError
from blockwright.formats import format_from_spec
from blockwright.formats.rank import RankFormat, RankLinear
from blockwright.numerics.weighted_svd import weighted_svd
from blockwright.registry import format_named
from blockwright.types import FactoredSolution


def rank_format(name: str) -> RankFormat:
    format = format_named(name)
    assert isinstance(format, RankFormat)
    return format


def packed(name: str, shape: tuple[int, int] = (48, 128)) -> RankLinear:
    format = rank_format(name)
    W = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, right = weighted_svd(W, torch.eye(shape[1])).factors(format.rank(shape))
    nearest = format.values.nearest
    solution = FactoredSolution(left=nearest(left), right=nearest(right))
    return format.pack(solution, torch.ones(shape[0]).bfloat16(), torch.bfloat16)


@pytest.mark.parametrize("shape", [(48, 128), (2048, 5632), (4096, 1024), (7, 384)])
@pytest.mark.parametrize("percent", [1, 25, 50, 99])
def test_percent_is_the_share_of_the_dense_bytes_never_more(
    shape: tuple[int, int], percent: int
) -> None:
    format, dense = rank_format(f"rank-p{percent}"), 2 * shape[0] * shape[1]
    one_more = format.stored_bytes(shape) + 2 * sum(shape)
    assert format.stored_bytes(shape) <= percent * dense / 100 < one_more


def test_ranks_fill_whole_groups_of_the_values() -> None:
    assert rank_format("rank-p50").rank((300, 300)) == 75
    assert rank_format("rank-p50+int4-g32").rank((300, 300)) == 64
    assert rank_format("rank-r75+int8").rank((300, 300)) == 75


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("rank-r65", (64, 128), "rank 65 is above the 64 .* use rank-r64 at most"),
        ("rank-p1", (64, 64), "1% of 64 x 64 is less than one rank"),
        ("rank-p50+int4-g64", (64, 64), "less than one rank of 64; use a higher percentage"),
        ("rank-r40+int4-g32", (64, 64), "left of rank-r40: group size 32 does not divide 40"),
        ("rank-r32+int4-g32", (64, 70), "right of rank-r32: group size 32 does not divide 70"),
    ],
)
def test_shapes_it_cannot_take_say_what_fits(
    name: str, shape: tuple[int, int], reason: str
) -> None:
    with pytest.raises(FormatError, match=f"model.layers.0.q.*{reason}"):
        rank_format(name).check_shape(shape, "model.layers.0.q_proj")


@pytest.mark.parametrize("name", ["rank", "rank-p0", "rank-p100", "rank-r0", "rank-50", "rank-p5x"])
def test_unknown_names_say_what_is_allowed(name: str) -> None:
    with pytest.raises(CandidateError, match=r"did you mean 'rank-p50'.*rank-p1 to rank-p99"):
        format_named(name)


@pytest.mark.parametrize("values", ["keep", "drop", "rank-p50", "sparse2of4"])
def test_values_are_formats_of_single_weights(values: str) -> None:
    with pytest.raises(CandidateError, match=r"cannot store values; after '\+'"):
        format_named(f"rank-p50+{values}")


def test_a_damaged_spec_says_what_is_missing() -> None:
    spec = rank_format("rank-p50").spec()
    with pytest.raises(FormatError, match="lacks 'percent'"):
        format_from_spec({key: value for key, value in spec.items() if key != "percent"})
    with pytest.raises(FormatError, match="give one of them"):
        format_from_spec({**spec, "rank": 8})
    with pytest.raises(FormatError, match="lacks 'values'"):
        format_from_spec({key: value for key, value in spec.items() if key != "values"})


@pytest.mark.parametrize("name", ["rank-p50", "rank-p50+int8"])
def test_the_product_is_two_products(name: str) -> None:
    module = packed(name)
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(1)).bfloat16()
    left, right = module.part("left"), module.part("right")
    expected = left(right(x)) + 1
    assert torch.equal(module(x), expected)
    assert module.part("right").shape == (17, 128)


def test_factors_can_be_trained() -> None:
    module = packed("rank-p50")
    factor = module.part("left").get_buffer("weight").requires_grad_()
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(1)).bfloat16()
    for product in (module, module.differentiable):
        (gradient,) = torch.autograd.grad(product(x).sum(), factor)
        assert gradient.abs().sum() > 0


def test_resident_bytes_are_the_stored_bytes_of_bfloat16_factors() -> None:
    module = packed("rank-p50")
    assert module.prepare().resident_bytes == module.stored_bytes


@pytest.mark.parametrize(("name", "rank"), [("rank-p50+int8", 85), ("rank-p50+int4-g64", 64)])
def test_composed_bytes_are_those_of_both_factors_with_their_scales(name: str, rank: int) -> None:
    format, values = rank_format(name), format_named(name.partition("+")[2])
    parts = ((256, rank), (rank, 512))
    assert format.rank((256, 512)) == rank
    assert format.stored_bytes((256, 512)) == sum(map(values.stored_bytes, parts))
    module = packed(name, (256, 512))
    saved = sum(t.numel() * t.element_size() for t in module.stored_weight().values())
    assert saved == format.stored_bytes((256, 512))
    codes = sum(rows * columns for rows, columns in parts) * (8 if "int8" in name else 4) // 8
    assert codes < saved < 1.15 * codes
