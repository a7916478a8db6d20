"""id formats: ranks, bytes, the product."""

from __future__ import annotations

import pytest
import torch

from blockwright.errors import CandidateError, FormatError
from blockwright.formats.id import IdFormat, IdLinear
from blockwright.numerics.interpolation import places
from blockwright.registry import format_named
from blockwright.types import DenseSolution, InterpolatedSolution


def id_format(name: str) -> IdFormat:
    format = format_named(name)
    assert isinstance(format, IdFormat)
    return format


def packed(kept: torch.Tensor, mixing: torch.Tensor, rows: list[int]) -> IdLinear:
    place_O = places(len(kept) + len(mixing), torch.tensor(rows))
    solution = InterpolatedSolution(
        place_O=place_O,
        kept=DenseSolution(values_OI=kept.bfloat16()),
        mixing=DenseSolution(values_OI=mixing.bfloat16()),
    )
    return id_format(f"id-r{len(kept)}").pack(solution, None, torch.bfloat16)


def test_kept_rows_are_the_outputs_themselves_and_the_others_mix_them() -> None:
    kept = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    mixing = torch.tensor([[2.0, 0.0], [-1.0, 1.0]])
    module = packed(kept, mixing, rows=[3, 0])
    expected = torch.stack([kept[1], mixing[0] @ kept, mixing[1] @ kept, kept[0]])
    assert torch.equal(module.dequantize(), expected)
    x = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 2.0]]).bfloat16()
    assert torch.equal(module(x).float(), x.float() @ expected.T)


@pytest.mark.parametrize("shape", [(48, 128), (2048, 5632), (4096, 1024), (40000, 64)])
@pytest.mark.parametrize("percent", [3, 25, 50, 99])
def test_percent_is_the_share_of_the_dense_bytes_never_more(
    shape: tuple[int, int], percent: int
) -> None:
    format, (O, I) = id_format(f"id-p{percent}"), shape  # noqa: E741
    rank = format.rank(shape)
    if rank < 1:
        pytest.skip("less than one rank")
    positions = O * (2 if O <= 1 << 15 else 4)
    assert format.stored_bytes(shape) == 2 * rank * (O + I - rank) + positions
    assert rank * (O + I - rank) + O <= percent * O * I / 100
    step = 16 if rank >= 256 else 1
    assert rank % step == 0
    one_more = (rank + step) * (O + I - rank - step) + O
    assert one_more > percent * O * I / 100 or rank + step > format.most_rank(shape)


def test_it_holds_more_ranks_than_two_factors_of_as_many_bytes() -> None:
    shape = (2048, 2048)
    assert id_format("id-p50").rank(shape) == 592
    assert format_named("rank-p50").rank(shape) == 512  # type: ignore[attr-defined]
    assert id_format("id-p80").rank(shape) > 1.3 * 819


def test_ranks_that_leave_no_output_to_mix_are_refused() -> None:
    with pytest.raises(FormatError, match=r"here: rank 48 is above the 47 .* use id-r47 at most"):
        id_format("id-r48").check_shape((48, 128), "here")
    with pytest.raises(FormatError, match="less than one rank"):
        id_format("id-p1").check_shape((48, 64), "here")
    id_format("id-r64").check_shape((128, 64), "here")


@pytest.mark.parametrize("name", ["id", "id-p0", "id-50", "id-r0", "rank-p50-id"])
def test_unknown_names_say_what_is_allowed(name: str) -> None:
    with pytest.raises(CandidateError, match=r"did you mean '(id|rank)-p50'"):
        format_named(name)


def test_both_parts_can_be_trained() -> None:
    module = packed(torch.randn(4, 8), torch.randn(3, 4), rows=[0, 2, 4, 6])
    x = torch.randn(5, 8).bfloat16()
    for part in ("kept", "mixing"):
        tensor = module.part(part).get_buffer("weight").requires_grad_()
        (gradient,) = torch.autograd.grad(module.differentiable(x).sum(), tensor)
        assert gradient.abs().sum() > 0
