"""How long and how fast."""

from __future__ import annotations

from typing import Any

import pytest

from blockwright.errors import TrainingError
from blockwright.training import TrainingSettings


def test_sequences_are_short_first_then_long() -> None:
    settings = TrainingSettings(
        steps=10, batch_tokens=64, short_length=16, long_length=32, long_share=0.2
    )
    assert [settings.length_at(step) for step in range(10)] == [16] * 8 + [32] * 2


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    settings = TrainingSettings(steps=100, learning_rate=1.0, warmup_steps=4)
    rates = [settings.rate_at(step) for step in range(100)]
    assert rates[0] == 0.25
    assert max(rates) == rates[3]
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[-1] < 0.001


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"batch_tokens": 100}, "whole sequences of 512"),
        ({"learning_rate": 0.0}, "rate above 0"),
        ({"long_share": 2.0}, "share from 0 to 1"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        TrainingSettings(**({"steps": 10} | wrong))
