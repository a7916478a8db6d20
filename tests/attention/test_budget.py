"""The density that was asked for is met from below, or refused."""

from __future__ import annotations

import pytest

from blockwright.attention import Context, Layout
from blockwright.attention.budget import meet_density
from blockwright.attention.metrics import density
from blockwright.attention.planted import PRESETS, plant
from blockwright.attention.policies.dense import Dense
from blockwright.attention.policies.mean import Mean
from blockwright.attention.policies.xattention import XAttention
from blockwright.attention.policy import Policy
from blockwright.errors import AttentionError

TOKENS = 1024
CONTEXT = Context(layout=Layout.plain(TOKENS, TOKENS), scale=0.125)


def measured(policy: Policy) -> float:
    data = plant(PRESETS["mixed"], TOKENS)
    return density(policy.choose(data.q, data.k, data.v, CONTEXT), CONTEXT)


@pytest.mark.parametrize("target", [0.3, 0.5, 1.0])
def test_a_share_is_met_within_two_percent(target: float) -> None:
    policy, found = meet_density(XAttention(block=32, stride=8), target, TOKENS, measured)
    assert found == measured(policy)
    assert 0.98 * target <= found <= target


def test_a_count_is_the_greatest_that_fits() -> None:
    policy, found = meet_density(Mean(query_block=32, key_block=32), 0.3, TOKENS, measured)
    assert isinstance(policy, Mean)
    assert found <= 0.3 < measured(Mean(query_block=32, key_block=32, keep=policy.keep + 1))


def test_less_than_the_forced_tiles_is_refused() -> None:
    with pytest.raises(AttentionError, match="already visits"):
        meet_density(Mean(), 0.1, TOKENS, measured)


def test_a_policy_without_a_budget_is_refused() -> None:
    with pytest.raises(AttentionError, match="no budget"):
        meet_density(Dense(), 0.1, TOKENS, measured)
