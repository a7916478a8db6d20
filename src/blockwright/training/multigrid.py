"""Multigrid: coarse, cheap shapes first, the full one at the end, as many tokens in every step.

Paper:   Wu, Girshick, He, Feichtenhofer, Kraehenbuehl, "A Multigrid Method for Efficiently Training
         Video Models", CVPR 2020.
Idea:    Short sequences make large batches of many documents at less attention; the finest shape is
         needed at the end only.  Of the paper's axes, text has one: the length of a sequence.

    long cycle    S / 8, S / 4, S / 2, S, in equal stages, ``CYCLES`` times
    short cycle   step by step 1/2, 0.7 and 1 of the stage's length, in multiples of 8
    at the end    S alone, for ``FINE_SHARE`` of the steps
    rate          times sqrt(S / stage's length), reached over ``RAMP`` steps
Shapes:  S tokens of the longest sequence.
Differs from the paper: rates go with the square root of the batch, for Adam (the paper: linearly,
         for SGD); the rate falls as a cosine and has no stages, so a cycle is half of the time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

STAGES = (8, 4, 2, 1)
SHORT = (0.5, 0.7, 1.0)
CYCLES = 2
FINE_SHARE = 0.15
RAMP = 20
LEAST_LENGTH = 8


@dataclass(frozen=True)
class Shape:
    """Of one step."""

    length: int
    """Tokens of a sequence."""
    rate: float
    """Multiple of the learning rate."""


def shape_at(step: int, steps: int, longest: int) -> Shape:
    """The shape of a step, from 0."""
    cycled = steps - math.ceil(FINE_SHARE * steps)
    places = CYCLES * len(STAGES)
    stage = min(places, step * places // max(1, cycled))
    if step >= cycled:
        stage = places
    began = cycled if stage == places else -(-stage * cycled // places)
    reached = min(1.0, (step - began + 1) / RAMP)
    rate = _rate(stage - 1) + (_rate(stage) - _rate(stage - 1)) * reached
    short = 1.0 if stage == places else SHORT[step % len(SHORT)]
    length = 8 * round(longest / _divisor(stage) * short / 8)
    return Shape(length=max(LEAST_LENGTH, length), rate=rate)


def _divisor(stage: int) -> int:
    """Of the longest sequence; what comes behind the last cycle is fine."""
    return STAGES[stage % len(STAGES)] if stage < CYCLES * len(STAGES) else 1


def _rate(stage: int) -> float:
    """Of a stage; nothing in front of the first."""
    return math.sqrt(_divisor(stage)) if stage >= 0 else 0.0
