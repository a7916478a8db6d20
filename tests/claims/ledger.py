"""What a method's paper or card says, as something to measure and a bound to hold.

A claim stands over a test that returns or yields what it measured and knows no bound:

    @claim(
        method="gptq",
        paper=Gptq.paper,
        says="compensating errors beats rounding to nearest",
        measures="held-out error / that of rtn, outlier-layer, int3-g64, 3 seeds",
        at_most=0.65,
        grade=Grade.FIRM,
    )
    def test_gptq_beats_rounding_to_nearest() -> Iterator[float]: ...

``pytest tests/claims --claims-out FILE`` writes a JSON list with one object per claim.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import pytest

Measure = Callable[..., float | Iterable[float]]


class Grade(StrEnum):
    """How sure a claim is, and what becomes of it when it does not hold."""

    HARD = "hard"
    """A guarantee: the build breaks."""
    FIRM = "firm"
    """Held by a wide margin in our own runs: the build breaks."""
    SOFT = "soft"
    """Statistical: recorded as not reproduced, the build goes on."""
    HARDWARE = "hw"
    """Needs hardware: the test skips with the reason where it is not there."""


class State(StrEnum):
    """What became of a claim."""

    HOLDS = "holds"
    NOT_REPRODUCED = "not reproduced"
    NEEDS_HARDWARE = "needs hardware"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One checkable statement."""

    method: str
    """Name of the method or format it is about."""
    paper: str
    says: str
    """The statement in words."""
    measures: str
    """What the test returns: quantity, model or layer, formats, seeds."""
    grade: Grade
    at_least: float = -math.inf
    at_most: float = math.inf

    def __post_init__(self) -> None:
        unbounded = math.isinf(self.at_least) and math.isinf(self.at_most)
        if unbounded or not self.at_least <= self.at_most:
            raise ValueError(f"claim about {self.method} ({self.says}): no bound, or an empty one")

    @property
    def bound(self) -> str:
        """The bound in words, e.g. ``1.5 to 2.2``."""
        if self.at_least == -math.inf:
            return f"at most {self.at_most:g}"
        if self.at_most == math.inf:
            return f"at least {self.at_least:g}"
        return f"{self.at_least:g} to {self.at_most:g}"

    def holds(self, measured: Sequence[float]) -> bool:
        """Every measured number is within the bound; there is at least one."""
        return bool(measured) and all(self.at_least <= x <= self.at_most for x in measured)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A claim with what was measured for it."""

    claim: Claim
    test: str
    """Id of the test."""
    state: State
    measured: tuple[float, ...] = ()
    reason: str = ""
    """Why it was not measured."""
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        claim = {k: v for k, v in asdict(self.claim).items() if k not in ("at_least", "at_most")}
        return {
            **claim,
            "bound": self.claim.bound,
            "test": self.test,
            "state": self.state.value,
            "measured": list(self.measured),
            "reason": self.reason,
            "seconds": round(self.seconds, 3),
        }


def claim(
    *,
    method: str,
    paper: str,
    says: str,
    measures: str,
    grade: Grade,
    at_least: float = -math.inf,
    at_most: float = math.inf,
) -> Callable[[Measure], Callable[..., tuple[float, ...]]]:
    """Make a test of a function that returns or yields numbers: it passes when the claim holds."""
    stated = Claim(
        method=method,
        paper=paper,
        says=says,
        measures=measures,
        grade=grade,
        at_least=at_least,
        at_most=at_most,
    )

    def decorate(measure: Measure) -> Callable[..., tuple[float, ...]]:
        @functools.wraps(measure)
        def test(**fixtures: Any) -> tuple[float, ...]:
            measured = measure(**fixtures)
            return (measured,) if isinstance(measured, int | float) else tuple(measured)

        marked: Callable[..., tuple[float, ...]] = pytest.mark.claim(stated)(test)
        return marked

    return decorate
