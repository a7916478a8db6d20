"""FlexAttention and the Triton kernel give the plain definition's outputs and log-sum-exps.

On CPU: FlexAttention unfused, and the kernel in Triton's interpreter (``TRITON_INTERPRET=1`` and
triton installed).
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import flex_attention

from blockwright.attention import Context, Layout, attend
from blockwright.attention.calling import ENGINES
from blockwright.attention.engines import flex, ref, triton_tiles
from blockwright.attention.heads import spread
from blockwright.attention.partial import Partial
from blockwright.attention.selection import Selection
from blockwright.attention.tiles import tile_status
from blockwright.errors import AttentionError
from tests.attention.cases import CAUSAL, Problem, Shape, random_problem
from tests.attention.test_engines import assert_same

SCALE = 0.3
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WITHOUT_TRITON = triton_tiles.unavailable(DEVICE)
needs_triton = pytest.mark.skipif(bool(WITHOUT_TRITON), reason=WITHOUT_TRITON)
SHAPES = [
    Shape(1, 1, 1, 1, 33, 8, 8, 1, 8),
    Shape(2, 1, 2, 20, 33, 20, 12, 16, 8),
    Shape(1, 2, 1, 24, 24, 16, 16, 5, 16),
    Shape(1, 2, 3, 7, 40, 16, 16, 1, 16),
]
RULES = [
    CAUSAL,
    CAUSAL | {"causal": False},
    CAUSAL | {"window": 9},
    CAUSAL | {"padded": True, "segments": True},
    CAUSAL | {"causal": False, "window": 9, "padded": True, "segments": True, "permuted": True},
]


def on_device(problem: Problem) -> Problem:
    def moved(item: object) -> object:
        changes = {n: x.to(DEVICE) for n, x in vars(item).items() if isinstance(x, torch.Tensor)}
        return replace(item, **changes)  # type: ignore[type-var]

    q, k, v, selection, layout = problem
    return Problem(q.to(DEVICE), k.to(DEVICE), v.to(DEVICE), moved(selection), moved(layout))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _plain_flex(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a compiler."""
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rule", range(len(RULES) + 1))
def test_flex_equals_the_definition(shape: Shape, rule: int) -> None:
    flags = [*RULES, CAUSAL | {"masked": True}][rule]
    for seed, cap in ((rule, None), (rule + 1, 2.0)):
        problem = random_problem(shape, flags, seed)
        got = flex.attend(*problem, scale=SCALE, logit_cap=cap, unfused=True)
        assert_same(got, ref.attend(*problem, scale=SCALE, logit_cap=cap))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rule", range(len(RULES)))
def test_flex_is_given_the_visited_tiles_and_which_are_whole(shape: Shape, rule: int) -> None:
    q, k, _, selection, layout = random_problem(shape, RULES[rule], rule)
    mask = flex.block_mask(q, k, selection, layout)
    status = tile_status(layout, shape.query_block, shape.key_block)
    tiles, visible, full = (
        spread(x, q.shape[1]).expand(len(q), -1, -1, -1)
        for x in (selection.to_mask(status.full.shape[-1]), status.visible, status.full)
    )
    assert torch.equal(mask.to_dense().bool(), tiles & visible)
    assert mask.full_kv_num_blocks is not None
    assert torch.equal(mask.full_kv_num_blocks.long(), (tiles & full).sum(-1))


def test_flex_visits_everything_without_a_selection() -> None:
    problem = random_problem(SHAPES[1], RULES[3], 0)._replace(selection=None)  # type: ignore[arg-type]
    assert_same(flex.attend(*problem, scale=SCALE, unfused=True), ref.attend(*problem, scale=SCALE))


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rule", range(len(RULES)))
def test_the_kernel_equals_the_definition(shape: Shape, rule: int) -> None:
    problem = on_device(random_problem(shape, RULES[rule], rule))
    assert_same(triton_tiles.attend(*problem, scale=SCALE), ref.attend(*problem, scale=SCALE))


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_kernel_takes_half_precision(dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and DEVICE.type == "cpu":
        pytest.skip("Triton's interpreter multiplies the bits of bfloat16 as integers")
    q, k, v, selection, layout = on_device(random_problem(SHAPES[2], CAUSAL, 2))
    half = q.to(dtype), k.to(dtype), v.to(dtype)
    got = triton_tiles.attend(*half, selection, layout, scale=SCALE)
    assert got.output.dtype == dtype
    assert_same(got, ref.attend(*half, selection, layout, scale=SCALE), 2e-2)


@needs_triton
@pytest.mark.slow
def test_the_kernel_leaves_rows_that_see_nothing_empty() -> None:
    q, k, v, _, layout = on_device(random_problem(SHAPES[2], CAUSAL, 0))
    none = Selection.of_mask(torch.zeros(1, 1, 2, 2, dtype=torch.bool, device=DEVICE), 16, 16)
    got: Partial = triton_tiles.attend(q, k, v, none, layout, scale=SCALE)
    assert not got.output.any()
    assert bool((got.lse == -torch.inf).all())


@needs_triton
@pytest.mark.slow
def test_the_kernel_visits_everything_without_a_selection() -> None:
    problem = on_device(random_problem(SHAPES[1], RULES[3], 0))
    whole = problem._replace(selection=None)  # type: ignore[arg-type]
    assert_same(triton_tiles.attend(*whole, scale=SCALE), ref.attend(*whole, scale=SCALE))


def test_engines_that_cannot_run_say_why() -> None:
    q = torch.zeros(1, 1, 4, 16)
    context = Context(layout=Layout.plain(4, 4), scale=SCALE)
    assert set(ENGINES) == {"cpu", "ref", "flex", "triton"}
    with pytest.raises(AttentionError, match="unknown engine 'fex'; did you mean 'flex'"):
        attend(q, q, q, policy="dense", context=context, engine="fex")
    with pytest.raises(AttentionError, match="flex: PyTorch's CPU kernel gives no log-sum-exp"):
        attend(q, q, q, policy="dense", context=context, engine="flex")
    if WITHOUT_TRITON:
        with pytest.raises(AttentionError, match=r"triton: .*; use engine 'cpu'"):
            attend(q, q, q, policy="dense", context=context, engine="triton")
