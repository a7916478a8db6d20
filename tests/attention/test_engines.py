"""Every engine gives the plain definition's outputs and log-sum-exps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockwright.attention.engines import by_query, cpu, ref
from blockwright.attention.engines.products import fused_product, plain_product
from blockwright.attention.heads import take_rows
from blockwright.attention.layout import Layout
from blockwright.attention.partial import Partial, merge
from blockwright.attention.selection import Selection
from tests.attention.cases import CAUSAL, FLAGS, Problem, Shape, random_far, random_problem, shapes

SCALE = 0.3


def assert_same(got: Partial, wanted: Partial, tolerance: float = 1e-5) -> None:
    assert torch.equal(got.lse == -torch.inf, wanted.lse == -torch.inf)
    finite = wanted.lse > -torch.inf
    torch.testing.assert_close(got.lse[finite], wanted.lse[finite], atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(
        got.output.float(), wanted.output.float(), atol=tolerance, rtol=tolerance
    )


@settings(max_examples=150, deadline=None, derandomize=True)
@given(shapes(), FLAGS, st.integers(0, 99), st.booleans(), st.sampled_from([None, 2.0]))
def test_cpu_equals_the_definition(
    shape: Shape, flags: dict[str, object], seed: int, far: bool, cap: float | None
) -> None:
    problem = random_problem(shape, flags, seed)
    fields = (random_far(problem, seed),) if far else ()
    got = cpu.attend(*problem, scale=SCALE, far=fields, logit_cap=cap)
    assert_same(got, ref.attend(*problem, scale=SCALE, far=fields, logit_cap=cap))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(shapes(), FLAGS, st.integers(0, 99))
def test_everything_visible_is_visited_without_a_selection(
    shape: Shape, flags: dict[str, object], seed: int
) -> None:
    problem = random_problem(shape, flags, seed)._replace(selection=None)  # type: ignore[arg-type]
    assert_same(cpu.attend(*problem, scale=SCALE), ref.attend(*problem, scale=SCALE))


@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 1000])
@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("causal", [True, False])
def test_dense_equals_torch(tokens: int, group: int, causal: bool) -> None:
    generator = torch.Generator().manual_seed(tokens)
    q, k, v = (
        torch.randn(2, heads, tokens, 16, generator=generator) for heads in (2 * group, 2, 2)
    )
    wanted = torch.nn.functional.scaled_dot_product_attention(
        q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1), is_causal=causal
    )
    layout = Layout.plain(tokens, tokens, causal=causal)
    got = cpu.attend(q, k, v, None, layout, scale=0.25)
    torch.testing.assert_close(got.output, wanted, atol=1e-5, rtol=1e-5)
    assert_same(got, ref.attend(q, k, v, None, layout, scale=0.25))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("query_block", [1, 16])
def test_other_dtypes(dtype: torch.dtype, query_block: int) -> None:
    shape = Shape(1, 2, 2, 130, 130, 32, 32, query_block, 16)
    q, k, v, selection, layout = random_problem(shape, CAUSAL, 2)
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    got = cpu.attend(q, k, v, selection, layout, scale=SCALE)
    assert got.output.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float64 else 2e-2
    assert_same(got, ref.attend(q, k, v, selection, layout, scale=SCALE), tolerance)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(shapes(), FLAGS, st.integers(0, 99))
def test_two_disjoint_selections_merge_to_the_joint_one(
    shape: Shape, flags: dict[str, object], seed: int
) -> None:
    problem = random_problem(shape, flags, seed)
    tiles = problem.selection.to_mask(-(-shape.keys // shape.key_block))
    odd = torch.arange(tiles.shape[-1]) % 2 == 1
    parts = [
        cpu.attend(*problem._replace(selection=selection), scale=SCALE)
        for selection in (halved(problem, tiles & odd), halved(problem, tiles & ~odd))
    ]
    assert_same(merge(parts), cpu.attend(*problem, scale=SCALE))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(shapes(), FLAGS, st.integers(0, 99))
def test_keys_out_of_order_are_gathered_from_where_they_are(
    shape: Shape, flags: dict[str, object], seed: int
) -> None:
    problem = random_problem(shape, flags, seed)
    generator = torch.Generator().manual_seed(seed)
    heads = [1, shape.kv_heads][seed % 2]
    order = torch.rand(1, heads, shape.keys, generator=generator).argsort(-1)
    k, v = (take_rows(x, order.argsort(-1)) for x in (problem.k, problem.v))
    for case in (problem, problem._replace(selection=None)):  # type: ignore[arg-type]
        got = cpu.attend(*case._replace(k=k, v=v), scale=SCALE, k_order=order)
        assert_same(got, cpu.attend(*case, scale=SCALE))


@pytest.mark.parametrize("kept", [1, 3, 8])
@pytest.mark.parametrize("rule", [CAUSAL, CAUSAL | {"window": 9}, CAUSAL | {"causal": False}])
def test_long_lists_are_multiplied_in_pieces(
    kept: int, rule: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = random_problem(Shape(2, 1, 2, 70, 75, 16, 12, 16, 8), rule, kept)
    monkeypatch.setattr(by_query, "GATHER_BYTES", kept * 8 * 28 * 4)
    assert_same(cpu.attend(*problem, scale=SCALE), ref.attend(*problem, scale=SCALE))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(shapes(), FLAGS, st.integers(0, 99), st.booleans())
def test_listed_summaries_equal_the_definition(
    shape: Shape, flags: dict[str, object], seed: int, causal_summaries: bool
) -> None:
    """Lists of coarse query tiles, hidden by finer ones."""
    problem = random_problem(shape, flags, seed)
    far = random_far(problem, seed)
    coarse = 2 * shape.query_block
    tiles = (-(-shape.queries // coarse), far.key.shape[2])
    generator = torch.Generator().manual_seed(seed)
    heads = [1, shape.kv_heads, shape.kv_heads * shape.group][seed % 3]
    shown = torch.rand(shape.batch, heads, *tiles, generator=generator) < 0.6
    far = replace(
        far,
        show=Selection.of_mask(shown, coarse, 1),
        last_position=far.last_position if causal_summaries else None,
    )
    got = cpu.attend(*problem, scale=SCALE, far=(far,))
    assert_same(got, ref.attend(*problem, scale=SCALE, far=(far,)))


def halved(problem: Problem, mask: torch.Tensor) -> Selection:
    return Selection.of_mask(mask, problem.selection.query_block, problem.selection.key_block)


def test_a_row_that_sees_nothing_is_zero() -> None:
    shape = Shape(1, 1, 2, 70, 70, 8, 8, 16, 16)
    q, k, v, _, layout = random_problem(shape, CAUSAL, 0)
    none = Selection.of_mask(torch.zeros(1, 1, 5, 5, dtype=torch.bool), 16, 16)
    got = cpu.attend(q, k, v, none, layout, scale=SCALE)
    assert not got.output.any()
    assert (got.lse == -torch.inf).all()


def test_gradients_reach_queries_keys_and_values() -> None:
    shape = Shape(1, 1, 2, 9, 9, 4, 4, 4, 4)
    q, k, v, selection, layout = random_problem(shape, CAUSAL, 2)
    leaves = [x.double().requires_grad_() for x in (q, k, v)]

    def output(*leaves: torch.Tensor) -> torch.Tensor:
        q, k, v = leaves
        return cpu.attend(q, k, v, selection, layout, scale=SCALE).output

    assert torch.autograd.gradcheck(output, leaves)


def test_the_fused_product_equals_the_plain_one() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(5, n, 16, generator=generator) for n in (33, 70, 70))
    bias = torch.zeros(5, 33, 70).masked_fill(
        torch.rand(5, 33, 70, generator=generator) < 0.3, -torch.inf
    )
    for mask in (None, bias):
        got, wanted = fused_product(q, k, v, mask, SCALE), plain_product(q, k, v, mask, SCALE)
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
