"""Sequence mixers: three forms that agree, states that a split does not change, limits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from blockwright.attention.mixer import SequenceMixer, Streams
from blockwright.attention.mixers.block_linear import BlockLinear
from blockwright.attention.mixers.gla import Gla, log_gates
from blockwright.attention.mixers.hippo import legs, normal_part
from blockwright.attention.mixers.lightning import Lightning, slopes
from blockwright.attention.mixers.ptd import perturbed_modes
from blockwright.attention.mixers.s4d import Modes, S4d, inverse_modes, legs_modes, linear_modes
from blockwright.errors import NumericalError

B, H, K, N, D, V = 2, 4, 2, 75, 8, 6
Made = tuple[SequenceMixer[Any], Streams]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def qkv() -> tuple[Tensor, Tensor, Tensor]:
    return normal(B, H, N, D), normal(B, K, N, D, seed=1), normal(B, K, N, V, seed=2)


def lightning() -> Made:
    return Lightning(slopes=slopes(K)), qkv()


def gla() -> Made:
    gates = log_gates(40 * normal(B, K, N, D, seed=3))  # some forget nearly all
    return Gla(), (*qkv(), gates)


def block_linear(block: int) -> Made:
    q, k, v = qkv()
    q, k = q.relu(), k.relu()
    return BlockLinear(block=block), (q, k, v, q.flip(-1), -k.flip(-1))


def s4d() -> Made:
    return S4d(modes=Modes.drawn(linear_modes(16), H, seed=0)), (normal(B, H, N),)


MIXERS: dict[str, Callable[[], Made]] = {
    "lightning": lightning,
    "gla": gla,
    "block_linear": lambda: block_linear(1),
    "s4d": s4d,
}


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("size", [1, 7, 16, 64, N])
def test_chunks_of_any_size_give_what_the_whole_gives(name: str, size: int) -> None:
    mixer, streams = MIXERS[name]()
    close(mixer.forward(*streams, size=size)[0], mixer.parallel(*streams))


@pytest.mark.parametrize("name", MIXERS)
def test_single_steps_give_what_the_whole_gives(name: str) -> None:
    mixer, streams = MIXERS[name]()
    state, outputs = mixer.start(*streams), []
    for token in zip(*(stream.split(1, dim=2) for stream in streams), strict=True):
        output, state = mixer.step(state, *token)
        outputs.append(output)
    close(torch.cat(outputs, dim=2), mixer.parallel(*streams))


@pytest.mark.parametrize("name", MIXERS)
def test_a_state_carried_across_a_split_changes_nothing(name: str) -> None:
    mixer, streams = MIXERS[name]()
    first, state = mixer.forward(*(stream[:, :, :41] for stream in streams), size=16)
    second, _ = mixer.forward(*(stream[:, :, 41:] for stream in streams), size=16, state=state)
    close(torch.cat([first, second], dim=2), mixer.parallel(*streams))


@pytest.mark.parametrize("name", MIXERS)
def test_outputs_have_the_streams_dtype(name: str) -> None:
    mixer, streams = MIXERS[name]()
    halves = [stream.bfloat16() for stream in streams]
    assert mixer.forward(*halves, size=16)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["lightning", "gla"])
def test_gradients_through_chunks_are_those_of_the_whole(name: str) -> None:
    mixer, streams = MIXERS[name]()
    leaves = [stream.clone().requires_grad_() for stream in streams]
    whole = torch.autograd.grad(mixer.parallel(*leaves).square().sum(), leaves)
    chunks = torch.autograd.grad(mixer.forward(*leaves, size=16)[0].square().sum(), leaves)
    for found, expected in zip(chunks, whole, strict=True):
        close(found, expected)


# -- linear attention


def test_without_decay_it_is_the_plain_sum_over_the_past() -> None:
    q, k, v = qkv()
    mixer = Lightning(slopes=(0.0, 0.0))
    weights = (q @ k.repeat_interleave(H // K, 1).mT).tril()
    close(mixer.forward(q, k, v, size=16)[0], weights @ v.repeat_interleave(H // K, 1))


def test_slopes_fall_by_head_and_depth_and_are_interleaved_between_powers_of_two() -> None:
    assert slopes(8)[0] == pytest.approx(0.5, rel=1e-4)
    assert slopes(8)[-1] == pytest.approx(2**-8, rel=1e-4)
    assert slopes(6)[:4] == slopes(4)
    assert slopes(6)[4:] == slopes(8)[0:4:2]
    assert 0 < slopes(8, layer=7, layers=8)[0] < 1e-4


def test_padding_with_open_gates_and_empty_keys_changes_nothing() -> None:
    mixer, (q, k, v, gates) = gla()
    k, gates = k.clone(), gates.clone()
    k[:, :, 40:], gates[:, :, 40:] = 0, 0
    _, before = mixer.forward(*(stream[:, :, :40] for stream in (q, k, v, gates)), size=16)
    _, after = mixer.forward(q, k, v, gates, size=16)
    close(after, before)


def test_query_heads_that_no_key_head_serves_are_refused() -> None:
    q, k, v = qkv()
    with pytest.raises(ValueError, match="3 query heads are no multiple of 2"):
        Lightning(slopes=slopes(K)).parallel(q[:, :3], k, v)


# -- blocks


@pytest.mark.parametrize("block", [1, 4, 25, N])
def test_blocks_see_themselves_and_the_past(block: int) -> None:
    mixer, streams = block_linear(block)
    close(mixer.forward(*streams, size=block)[0], mixer.parallel(*streams))


def test_a_block_that_is_denoised_leaves_the_state_until_it_is_committed() -> None:
    mixer, streams = block_linear(25)
    assert isinstance(mixer, BlockLinear)
    first, second = (tuple(s[:, :, at : at + 25] for s in streams) for at in (0, 25))
    state = mixer.commit(mixer.start(*streams), *first)
    once, again = mixer.denoise(state, *second), mixer.denoise(state, *second)
    assert torch.equal(once, again)
    close(once, mixer.parallel(*streams)[:, :, 25:50])
    held = {tensor.numel() for tensor in vars(mixer.commit(state, *second)).values()}
    assert held == {tensor.numel() for tensor in vars(state).values()}
    with pytest.raises(ValueError, match="a block has 25 tokens"):
        mixer.step(state, *second)


# -- state spaces


@pytest.mark.parametrize("modes", [linear_modes, inverse_modes, legs_modes])
def test_modes_decay_and_are_as_many_as_asked(modes: Callable[[int], Tensor]) -> None:
    found = modes(16)
    assert len(found) == 16
    assert (found.real < 0).all()
    assert (found.imag >= 0).all()


def test_the_kernel_is_the_answer_to_one_impulse() -> None:
    mixer, _ = s4d()
    assert isinstance(mixer, S4d)
    impulse = torch.zeros(1, H, 32)
    impulse[:, :, 0] = 1
    expected = mixer.modes.kernel(32)
    expected[:, 0] += mixer.modes.skip
    close(mixer.forward(impulse, size=5)[0][0], expected)


def test_the_normal_part_of_legs_is_skew_but_for_its_diagonal() -> None:
    skew = normal_part(12) + 0.5 * torch.eye(12, dtype=torch.float64)
    assert torch.allclose(skew, -skew.T)
    A, b = legs(3)
    assert A[0, 0] == -1
    assert A[2, 1] == pytest.approx(-math.sqrt(15))
    assert b[2] == pytest.approx(math.sqrt(5))


def test_perturbed_modes_rebuild_the_perturbed_matrix() -> None:
    L, right, V = perturbed_modes(12, draws=2)
    A, b = legs(12)
    rebuilt = V @ torch.diag(L) @ torch.linalg.inv(V)
    change = torch.linalg.matrix_norm(rebuilt - A, 2) / torch.linalg.matrix_norm(A, 2)
    assert change == pytest.approx(1e-3, rel=1e-3)
    assert torch.allclose(V @ right, b.to(V.dtype))
    with pytest.raises(NumericalError, match="smaller eps"):
        perturbed_modes(48, eps=0.5, draws=1)
