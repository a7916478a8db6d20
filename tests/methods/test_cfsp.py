"""CFSP: a channel counts by its size and its share of what it reads and writes."""

from __future__ import annotations

import pytest
import torch

from blockwright.errors import CandidateError
from blockwright.methods.width.cfsp import Cfsp
from blockwright.types import Statistics

DRAW = torch.Generator().manual_seed(0)
W = torch.randn(6, 12, generator=DRAW)
READERS = [torch.randn(12, 8, generator=DRAW) for _ in range(2)]
RMS = 0.5 + torch.rand(12, generator=DRAW)


def seen() -> Statistics:
    return Statistics(tokens=512, input_gram=RMS.square().diag())


def test_channels_are_those_of_largest_score() -> None:
    """Against the formula, term by term."""
    written = (W.abs() * RMS) / (W.abs() * RMS).sum(1, keepdim=True)
    read = [(r.abs() / r.abs().sum(0)).mean(1) for r in READERS]
    score = RMS * torch.stack([written.mean(0), *read]).mean(0)
    kept, columns = Cfsp().narrow(W, seen(), 5, readers=READERS)
    assert kept.tolist() == sorted(score.topk(5).indices.tolist())
    assert torch.equal(columns, W[:, kept])


def test_a_head_is_the_sum_of_its_columns() -> None:
    written = ((W.abs() * RMS) / (W.abs() * RMS).sum(1, keepdim=True)).mean(0) * RMS
    kept, columns = Cfsp().narrow(W, seen(), 2, columns=4)
    assert kept.tolist() == sorted(written.view(3, 4).sum(1).topk(2).indices.tolist())
    assert columns.shape == (6, 8)
    assert torch.equal(columns[:, :4], W[:, 4 * kept[0] : 4 * kept[0] + 4])


def test_independent_channels_gain_nothing_from_a_refit() -> None:
    kept, columns = Cfsp(refit=True).narrow(W, seen(), 5, readers=READERS)
    torch.testing.assert_close(columns, W[:, kept], rtol=1e-3, atol=1e-4)


def test_options_have_bounds() -> None:
    with pytest.raises(CandidateError, match="above 0"):
        Cfsp(damping=0.0)
