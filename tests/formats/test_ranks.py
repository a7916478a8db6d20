"""ranks formats: what is stored is a rank format, or the weight as the values store it."""

from __future__ import annotations

import pytest
import torch

from blockwright.errors import CandidateError
from blockwright.formats.ranks import RanksFormat
from blockwright.registry import format_named, resolve
from blockwright.types import Candidate, DenseSolution, FactoredSolution, ValueFormat


def ranks_format(name: str) -> RanksFormat:
    format = format_named(name)
    assert isinstance(format, RanksFormat)
    return format


@pytest.mark.parametrize(
    ("counted", "stored"),
    [(1, "rank-r1"), (17, "rank-r17"), (34, "rank-r34"), (35, None), (48, None)],
)
def test_factors_are_stored_while_they_are_smaller(counted: int, stored: str | None) -> None:
    found = ranks_format("ranks-t100").factored((48, 128), counted)
    assert (found and found.name) == stored


def test_ranks_are_filled_up_to_whole_groups() -> None:
    format = ranks_format("ranks-t100+int4-g32")
    found = format.factored((256, 256), 33)
    assert found is not None
    assert found.name == "rank-r64+int4-g32"
    assert format.factored((256, 256), 97) is None


@pytest.mark.parametrize("values", ["bf16", "int8", "int4-g32"])
def test_it_packs_a_rank_format_or_the_values(values: str) -> None:
    format = ranks_format(f"ranks-t100+{values}") if values != "bf16" else RanksFormat(100)
    nearest = format.values.nearest
    pair = FactoredSolution(left=nearest(torch.randn(64, 32)), right=nearest(torch.randn(32, 128)))
    plus = "" if values == "bf16" else f"+{values}"
    assert format.pack(pair, None, torch.bfloat16).format.name == f"rank-r32{plus}"
    whole = format.pack(nearest(torch.randn(64, 128)), None, torch.bfloat16)
    assert whole.format.name == values
    assert whole.stored_bytes == format.stored_bytes((64, 128)) > format.least_bytes((64, 128))


def test_another_solution_is_refused() -> None:
    solution = DenseSolution(values_OI=torch.zeros(4, 4).bfloat16())
    with pytest.raises(TypeError, match=r"ranks-t5.* stores a FactoredSolution or one of int8"):
        ranks_format("ranks-t5+int8").pack(solution, None, torch.bfloat16)


@pytest.mark.parametrize("name", ["ranks", "ranks-t0", "ranks-t1000", "ranks-p50", "ranks-t0.1"])
def test_unknown_names_say_what_is_allowed(name: str) -> None:
    with pytest.raises(CandidateError, match="did you mean 'ranks-t175'"):
        format_named(name)


def test_it_is_not_summed_and_not_filled_by_methods_of_one_rank() -> None:
    with pytest.raises(CandidateError, match="adds a product"):
        format_named("nf3-g64&ranks-t100")
    with pytest.raises(CandidateError, match="svd cannot fill ranks-t100; what can: welore"):
        resolve(Candidate.parse("ranks-t100:svd"))
    assert isinstance(ranks_format("ranks-t100").values, ValueFormat)
