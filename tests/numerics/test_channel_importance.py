"""CFSP's numbers: totals, order, and what decides a score."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from blockwright.numerics.channel_importance import channel_scores, turning, widths


def test_the_angle_is_that_of_the_plane() -> None:
    x = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    for angle in (0.0, 0.3, math.pi / 2, math.pi):
        y = 3 * torch.tensor([[math.cos(angle), math.sin(angle)]]).expand(2, 2)
        assert turning(x, y) == pytest.approx(angle / math.pi, abs=1e-6)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_the_total_is_the_share_and_more_important_blocks_keep_no_less(
    share: float, seed: int
) -> None:
    importance = torch.rand(8, generator=torch.Generator().manual_seed(seed)).tolist()
    kept = widths(importance, share, 640, 16)
    assert abs(sum(kept) - share * 8 * 640) <= 16
    assert all(count % 16 == 0 and 0 < count <= 640 for count in kept)
    by_importance = [count for _, count in sorted(zip(importance, kept, strict=True))]
    assert all(a <= b + 16 for a, b in pairwise(by_importance))
    assert max(kept) > min(kept)


def test_equal_blocks_keep_equal_widths_and_nonsense_is_refused() -> None:
    assert widths([0.2] * 4, 0.5, 64, 16) == [32] * 4
    for share, channels in ((0.0, 64), (1.0, 64), (0.5, 63)):
        with pytest.raises(ValueError, match="in steps of 16"):
            widths([0.2] * 4, share, channels, 16)


def test_scores_are_relative_to_the_other_channels() -> None:
    random = torch.Generator().manual_seed(0)
    down = torch.randn(4, 6, generator=random)
    up, gate = (torch.randn(6, 4, generator=random) for _ in range(2))
    rms = torch.rand(6, generator=random)
    found = channel_scores(down, (up, gate), rms)
    for j in range(6):
        of_down = [down[d, j].abs() * rms[j] / (down[d].abs() * rms).sum() for d in range(4)]
        of_up = [up[j, d].abs() / up[:, d].abs().sum() for d in range(4)]
        of_gate = [gate[j, d].abs() / gate[:, d].abs().sum() for d in range(4)]
        by_hand = rms[j] * sum(map(sum, (of_down, of_up, of_gate))) / 12
        assert float(found[j]) == pytest.approx(float(by_hand), rel=1e-5)
    torch.testing.assert_close(channel_scores(down * 7, (up, gate * 3), rms), found)
    assert torch.equal(channel_scores(down, (up, gate), rms, relative=False), rms)
