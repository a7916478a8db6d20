"""What holds for every policy, whatever it chooses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from blockwright.attention import Attended, Context, Layout, Policy, attend
from blockwright.attention.budget import with_most
from blockwright.attention.calling import compute, padded_layout
from blockwright.attention.heads import spread
from blockwright.attention.metrics import density
from blockwright.attention.tiles import tile_status
from blockwright.registry import policy_class
from tests.attention.policies import BIDIRECTIONAL, CAUSAL, NAMES, small

TOKENS, WIDTH = 173, 16
SCALE = WIDTH**-0.5


def tensors(
    heads: int = 4, kv_heads: int = 2, tokens: int = TOKENS, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(2, count, tokens, WIDTH, generator=generator)
        for count in (heads, kv_heads, kv_heads)
    )
    return 2 * q, k, v


def run(q: Tensor, k: Tensor, v: Tensor, policy: str | Policy, *, causal: bool = True) -> Attended:
    layout = Layout.plain(q.shape[2], k.shape[2], causal=causal)
    return attend(q, k, v, policy=policy, context=Context(layout=layout, scale=SCALE))


def directions(name: str) -> list[bool]:
    return [causal for causal, known in ((True, CAUSAL), (False, BIDIRECTIONAL)) if name in known]


def close(got: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(got, wanted, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", [name for name in NAMES if policy_class(name).knob])
def test_the_greatest_budget_is_dense(name: str) -> None:
    for causal in directions(name):
        q, k, v = tensors()
        got = run(q, k, v, with_most(small(name), TOKENS), causal=causal)
        close(got.output, run(q, k, v, "dense", causal=causal).output)


@pytest.mark.parametrize("name", NAMES)
def test_something_is_left_out(name: str) -> None:
    """Otherwise the tests here would compare dense with dense."""
    if name == "dense":
        pytest.skip("leaves nothing out")
    for causal in directions(name):
        q, k, v = tensors()
        got = run(q, k, v, small(name), causal=causal)
        context = Context(layout=Layout.plain(TOKENS, TOKENS, causal=causal), scale=SCALE)
        assert 0 < density(got.choice, context) < 1


@pytest.mark.parametrize("name", CAUSAL)
def test_no_output_depends_on_later_tokens_of_fixed_tiles(name: str) -> None:
    q, k, v = tensors()
    policy = small(name)
    context = Context(layout=Layout.plain(TOKENS, TOKENS), scale=SCALE)
    choice = policy.choose(q, k, v, context)
    if choice.far or choice.stop:
        pytest.skip("summaries and stopping rows belong to the choice")
    before, _ = compute(q, k, v, choice, context)
    cut = 101
    for x in (q, k, v):
        x[:, :, cut:] = 7.0
    after, _ = compute(q, k, v, choice, context)
    assert torch.equal(before.output[:, :, :cut], after.output[:, :, :cut])


@pytest.mark.parametrize("name", [name for name in CAUSAL if policy_class(name).train_safe])
def test_a_train_safe_policy_never_looks_ahead(name: str) -> None:
    q, k, v = tensors()
    before = run(q, k, v, small(name)).output
    cut = 101
    for x in (q, k, v):
        x[:, :, cut:] = 7.0
    close(run(q, k, v, small(name)).output[:, :, :cut], before[:, :, :cut], 1e-6)


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_padding_by_whole_tiles_changes_nothing(name: str, left: bool) -> None:
    """Tiles are cut from the first slot, so padding that fills tiles leaves the same tiles."""
    if name == "random":
        pytest.skip("draws by the number of the tile")
    tokens, pads = 160, 32
    for causal in directions(name):
        q, k, v = tensors(tokens=tokens)
        wanted = run(q, k, v, small(name), causal=causal)
        sides = (0, 0, pads, 0) if left else (0, 0, 0, pads)
        wide = [torch.nn.functional.pad(x, sides, value=3.0) for x in (q, k, v)]
        real = torch.nn.functional.pad(torch.ones(2, tokens, dtype=torch.bool), sides[2:])
        layout = padded_layout(wide[0], wide[1], real, causal=causal)
        got = attend(
            wide[0],
            wide[1],
            wide[2],
            policy=small(name),
            context=Context(layout=layout, scale=SCALE),
        )
        kept = slice(pads, None) if left else slice(0, tokens)
        close(got.output[:, :, kept], wanted.output)
        assert not got.output[:, :, slice(0, pads) if left else slice(tokens, None)].any()


@pytest.mark.parametrize("name", NAMES)
def test_heads_of_a_group_equal_repeated_keys_and_values(name: str) -> None:
    for causal in directions(name):
        q, k, v = tensors()
        got = run(q, k, v, small(name), causal=causal)
        if got.choice.layout is not None and got.choice.layout.k_order is not None:
            continue  # one order per key/value head: it depends on the group
        wanted = run(q, spread(k, 4), spread(v, 4), small(name), causal=causal)
        close(got.output, wanted.output)


@pytest.mark.parametrize("name", NAMES)
def test_every_token_visits_its_own_tile(name: str) -> None:
    for causal in directions(name):
        q, k, v = tensors()
        choice = run(q, k, v, small(name), causal=causal).choice
        selection = choice.selection
        if selection is None:
            continue
        layout = choice.layout or Layout.plain(TOKENS, TOKENS, causal=causal)
        status = tile_status(layout, selection.query_block, selection.key_block)
        tiles = selection.to_mask(status.own.shape[-1])
        if selection.key_block > 1 and layout.k_order is None:
            assert bool((tiles | ~status.own).all())
        assert bool((selection.count >= 1).all())


@pytest.mark.parametrize("name", NAMES)
def test_the_same_call_twice_gives_the_same_bits(name: str) -> None:
    for causal in directions(name):
        q, k, v = tensors()
        first, second = (run(q, k, v, small(name), causal=causal) for _ in range(2))
        assert torch.equal(first.output, second.output)


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_not_changed(name: str) -> None:
    q, k, v = tensors()
    copies = [x.clone() for x in (q, k, v)]
    run(q, k, v, small(name), causal=directions(name)[0])
    assert all(torch.equal(x, copy) for x, copy in zip((q, k, v), copies, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_near_to_fp32(name: str) -> None:
    """For the tiles that fp32 chose: near ties may fall either way."""
    for causal in directions(name):
        q, k, v = tensors()
        context = Context(layout=Layout.plain(TOKENS, TOKENS, causal=causal), scale=SCALE)
        choice = replace(small(name).choose(q, k, v, context), stop=None)
        exact, _ = compute(q, k, v, choice, context)
        half, _ = compute(q.bfloat16(), k.bfloat16(), v.bfloat16(), choice, context)
        error = torch.linalg.norm(half.output.float() - exact.output)
        assert float(error) <= 2e-2 * float(torch.linalg.norm(exact.output))


def decodes_like_its_prefill(policy: type[Policy]) -> bool:
    return policy.decode and policy.train_safe and not policy.remembers


@pytest.mark.parametrize(
    "name", [name for name in CAUSAL if decodes_like_its_prefill(policy_class(name))]
)
def test_decoding_a_token_equals_its_row_of_the_prefill(name: str) -> None:
    q, k, v = tensors()
    wanted = run(q, k, v, small(name)).output[:, :, -1:]
    close(run(q[:, :, -1:], k, v, small(name)).output, wanted)


@pytest.mark.parametrize("name", CAUSAL)
def test_one_token_attends_to_itself(name: str) -> None:
    q, k, v = tensors(tokens=1)
    close(run(q, k, v, small(name)).output, spread(v, 4))
