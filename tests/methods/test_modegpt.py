"""MoDeGPT's FFN: leverage, least squares, and nothing lost where nothing goes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from blockwright.errors import CandidateError, NumericalError
from blockwright.methods.width.modegpt import ModeGpt, leverage
from blockwright.numerics.channel_refit import refit
from blockwright.types import Statistics


def layer(seed: int = 0, channels: int = 32) -> tuple[Tensor, Tensor]:
    """A weight [24, channels] and the Gram of correlated channels."""
    draw = torch.Generator().manual_seed(seed)
    mixed = torch.randn(channels, channels, generator=draw) / channels**0.5
    a = torch.randn(512, channels, generator=draw) @ (torch.eye(channels) + 2 * mixed)
    return torch.randn(24, channels, generator=draw), a.T @ a / len(a)


def test_all_channels_kept_is_the_weight_itself() -> None:
    W, C = layer()
    kept, found = ModeGpt().narrow(W, Statistics(tokens=512, input_gram=C), 32)
    assert kept.tolist() == list(range(32))
    assert torch.equal(found, W)


def test_the_refit_is_least_squares_on_the_outputs() -> None:
    W, C = layer()
    kept = torch.tensor([1, 2, 5, 9, 20, 31])
    found = refit(W, C.double(), kept, 1e-12)
    root = torch.linalg.cholesky(C.double()).T
    expected = torch.linalg.lstsq(root[:, kept], root @ W.double().T).solution.T
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_leverage_is_what_no_other_channel_gives() -> None:
    """A copied channel has half the leverage of one by itself."""
    C = torch.eye(6, dtype=torch.float64)
    C[0, 1] = C[1, 0] = 1.0
    score = leverage(C, 1e-9)
    torch.testing.assert_close(score[2:], torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(score[:2], torch.full((2,), 0.5, dtype=torch.float64))


def test_copied_channels_are_left_out_for_nothing() -> None:
    W, C = layer(channels=16)
    double = torch.cat([torch.eye(16), torch.eye(16)], 1)
    C = double.T @ C @ double
    W = torch.cat([W, W], 1)
    kept = torch.arange(16)
    found = refit(W, C.double(), kept, 1e-12)
    lost = -W.double()
    lost[:, kept] += found.double()
    energy = torch.einsum("oi,ij,oj->", W.double(), C.double(), W.double())
    assert torch.einsum("oi,ij,oj->", lost, C.double(), lost) < 1e-6 * energy


def test_the_norm_score_and_no_refit_keep_columns_as_they_are() -> None:
    W, C = layer()
    method = ModeGpt(score="norm", refit=False)
    kept, found = method.narrow(W, Statistics(tokens=512, input_gram=C), 8)
    norms = C.diagonal().sqrt() * W.norm(dim=0)
    assert set(kept.tolist()) == set(norms.topk(8).indices.tolist())
    assert torch.equal(found, W[:, kept])


def test_a_gram_that_is_none_is_refused() -> None:
    W, C = layer()
    for broken in (C.fill_diagonal_(float("nan")), -torch.eye(32)):
        with pytest.raises(NumericalError, match="channels"):
            ModeGpt().narrow(W, Statistics(tokens=512, input_gram=broken), 8)


@pytest.mark.parametrize("options", [{"score": "size"}, {"ridge": 0.0}, {"damping": -1.0}])
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(CandidateError, match="modegpt@"):
        ModeGpt(**options)  # type: ignore[arg-type]
