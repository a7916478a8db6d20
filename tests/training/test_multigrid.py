"""The multigrid schedule: every shape is seen, tokens of a step stay, the end is fine."""

from __future__ import annotations

from itertools import pairwise

import pytest

from blockwright.errors import TrainingError
from blockwright.training.multigrid import CYCLES, FINE_SHARE, RAMP, SHORT, STAGES, shape_at
from tests.training.cases import settings, trained

STEPS, LONGEST = 1000, 512


def lengths(first: int, last: int) -> list[int]:
    return [shape_at(step, STEPS, LONGEST).length for step in range(first, last)]


def test_every_cycle_visits_every_shape_and_the_end_is_fine() -> None:
    fine = int(STEPS * (1 - FINE_SHARE))
    stage = fine / (CYCLES * len(STAGES))
    for place in range(CYCLES * len(STAGES)):
        seen = lengths(round(place * stage) + 1, round((place + 1) * stage) - 1)
        full = LONGEST / STAGES[place % len(STAGES)]
        assert sorted(set(seen)) == [8 * round(full * short / 8) for short in SHORT]
    assert set(lengths(fine, STEPS)) == {LONGEST}


def test_rates_go_with_the_root_of_the_batch_and_ramp() -> None:
    rates = [shape_at(step, STEPS, LONGEST).rate for step in range(STEPS)]
    assert rates[RAMP] == pytest.approx(8**0.5)
    assert rates[-1] == 1.0
    steps = [abs(after - before) for before, after in pairwise(rates)]
    assert max(steps) < 8**0.5 / RAMP + 1e-9


def test_a_model_trains_through_all_shapes() -> None:
    _, log = trained(
        None, steps=40, checks=4, batch_tokens=256, short_length=64, long_length=64, multigrid=True
    )
    assert log[-1]["train_loss"] < log[0]["train_loss"]


def test_other_lengths_beside_it_are_refused() -> None:
    with pytest.raises(TrainingError, match="give one length"):
        settings(short_length=32, long_length=64, long_share=0.5, multigrid=True)
