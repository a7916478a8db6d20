"""flash-linear-attention is handed the streams as it takes them.

Its place is taken by the recurrence that its documentation states; the kernels themselves are a
claim that needs a GPU.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from blockwright.attention import gpu_kernels
from blockwright.attention.mixer import SequenceMixer, Streams
from blockwright.attention.mixers.gla import Gla, log_gates
from blockwright.attention.mixers.lightning import Lightning, slopes


def recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    scale: float,
    initial_state: Tensor,
    output_final_state: bool,
) -> tuple[Tensor, Tensor]:
    """S_t = exp(g_t) S_{t-1} + k_t^T v_t, o_t = scale q_t S_t over [B, N, H, ...]."""
    assert output_final_state
    state, outputs = initial_state, []
    decay = (g if g.ndim == 4 else g[..., None].expand(*k.shape)).exp()
    for t in range(q.shape[1]):
        state = decay[:, t, :, :, None] * state + k[:, t, :, :, None] * v[:, t, :, None]
        outputs.append(scale * (q[:, t, :, None] @ state)[:, :, 0])
    return torch.stack(outputs, 1), state


def made(name: str) -> tuple[SequenceMixer[Tensor], Streams, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v, x = (torch.randn(2, 3, 40, 8, generator=generator) for _ in range(4))
    state = torch.randn(2, 3, 8, 8, generator=generator)
    if name == "gla":
        return Gla(), (q, k, v, log_gates(x)), state
    return Lightning(slopes=slopes(3)), (q, k, v), state


@pytest.mark.parametrize("name", ["gla", "lightning"])
def test_the_kernel_is_given_what_the_chunks_compute(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixer, streams, state = made(name)
    expected, last = mixer.forward(*streams, size=16, state=state)
    monkeypatch.setattr(gpu_kernels, "missing", lambda q, k: "")
    monkeypatch.setattr(gpu_kernels, "operation", lambda name: recurrence)
    found, found_last = mixer.forward(*streams, size=16, state=state)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found_last, last, rtol=1e-4, atol=1e-4)


def test_an_older_one_is_told_that_tokens_come_first() -> None:
    seen: list[bool] = []

    def older(*, head_first: bool = True, **rest: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(head_first)
        return rest["q"], rest["initial_state"]

    q = torch.zeros(1, 2, 4, 8)
    gpu_kernels.run(older, q, q, q, q, torch.zeros(1, 2, 8, 8))
    assert seen == [False]


def test_where_there_is_no_gpu_the_reason_says_so() -> None:
    q = torch.zeros(1, 2, 4, 8)
    assert gpu_kernels.missing(q, q) == "the tensors are not on a GPU"
