"""What a method's paper or a format's law says, as something to measure and a bound to hold.

A claim stands over a function that returns or yields what it measured and knows no bound:

    @claim(
        method="gptq",
        says="compensating errors beats rounding to nearest",
        measures="held-out error / that of rtn, outlier-layer, int3-g64",
        at_most=0.65,
        grade=Grade.FIRM,
    )
    def test_gptq_beats_rounding_to_nearest(seed: int) -> float: ...

Family and paper are those of the registered method, format or recipe; a claim about something else
gives both.  A function that takes ``seed`` is called for every seed of ``SEEDS``.  ``make claims``
runs, judges and writes everything down: ``record``.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pytest

from blockwright import registry
from blockwright.cli.claims import header_section

Measure = Callable[..., float | Iterable[float]]
SEEDS = (0, 1, 2)


class Grade(StrEnum):
    """How sure a claim is, and what becomes of it when it does not hold."""

    HARD = "hard"
    """A guarantee: the build breaks."""
    FIRM = "firm"
    """Held by a wide margin in our own runs: the build breaks."""
    SOFT = "soft"
    """Statistical, judged by the mean: recorded as not reproduced, the build goes on."""
    HARDWARE = "hw"
    """Needs hardware: the test skips with the reason where it is not there."""


class State(StrEnum):
    """What became of a claim."""

    HOLDS = "holds"
    NOT_REPRODUCED = "not reproduced"
    NEEDS_HARDWARE = "needs hardware"
    NOT_MEASURED = "not measured"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One checkable statement."""

    method: str
    """Name of the method or format it is about."""
    family: str
    paper: str
    says: str
    """The statement in words."""
    measures: str
    """What the test returns: quantity, model or layer, formats."""
    grade: Grade
    at_least: float = -math.inf
    at_most: float = math.inf
    seeds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        unbounded = math.isinf(self.at_least) and math.isinf(self.at_most)
        if unbounded or not self.at_least <= self.at_most:
            raise ValueError(f"claim about {self.method} ({self.says}): no bound, or an empty one")

    @property
    def bound(self) -> str:
        """The bound in words, e.g. ``1.5 to 2.2``."""
        if self.at_least == self.at_most:
            return f"{self.at_most:g}"
        if self.at_least == -math.inf:
            return f"at most {self.at_most:g}"
        if self.at_most == math.inf:
            return f"at least {self.at_least:g}"
        return f"{self.at_least:g} to {self.at_most:g}"

    def holds(self, measured: Sequence[float]) -> bool:
        """Every measured number (soft: their mean) is within the bound; there is at least one."""
        if self.grade is Grade.SOFT and measured:
            measured = [sum(measured) / len(measured)]
        return bool(measured) and all(self.at_least <= x <= self.at_most for x in measured)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A claim with what was measured for it."""

    claim: Claim
    test: str
    """``test_file.py::test_name``."""
    measured: tuple[float, ...] = ()
    reason: str = ""
    """Why it needs hardware that is not here."""

    @property
    def state(self) -> State:
        if self.reason:
            return State.NEEDS_HARDWARE
        return State.HOLDS if self.claim.holds(self.measured) else State.NOT_REPRODUCED


def claim(
    *,
    method: str,
    says: str,
    measures: str,
    grade: Grade,
    at_least: float = -math.inf,
    at_most: float = math.inf,
    family: str = "",
    paper: str = "",
) -> Callable[[Measure], Callable[..., tuple[float, ...]]]:
    """Make a test of a function that returns or yields numbers: it passes when the claim holds."""
    if not (family and paper):
        known_family, known_paper = described(method)
        family, paper = family or known_family, paper or known_paper

    def decorate(measure: Measure) -> Callable[..., tuple[float, ...]]:
        signature = inspect.signature(measure)
        seeds = SEEDS if "seed" in signature.parameters else ()
        stated = Claim(
            method=method,
            family=family,
            paper=paper,
            says=says,
            measures=measures,
            grade=grade,
            at_least=at_least,
            at_most=at_most,
            seeds=seeds,
        )

        @functools.wraps(measure)
        def test(**fixtures: Any) -> tuple[float, ...]:
            runs = [{"seed": seed} for seed in seeds] or [{}]
            return tuple(x for run in runs for x in _numbers(measure(**fixtures, **run)))

        fixtures = [p for name, p in signature.parameters.items() if name != "seed"]
        vars(test)["__signature__"] = signature.replace(parameters=fixtures)
        marked: Callable[..., tuple[float, ...]] = pytest.mark.claim(stated)(test)
        return marked

    return decorate


def described(name: str) -> tuple[str, str]:
    """Family and paper of a registered method, format, adapter or training recipe."""
    described: type
    if name in registry.method_names():
        described = registry.method_class(name)
    elif name in registry.format_stems():
        described = registry.format_class(name)
    elif name in registry.recipe_names():
        described = registry.recipe_class(name)
    elif name in registry.adapter_names():
        described = registry.adapter_class(name)
    else:
        raise ValueError(
            f"claim about {name!r}: no method, format, adapter or recipe; give its family and paper"
        )
    header = sys.modules[described.__module__].__doc__
    paper = getattr(described, "paper", "") or header_section(header, "Paper")
    return getattr(described, "family", "format"), paper


def _numbers(measured: float | Iterable[float]) -> tuple[float, ...]:
    return (measured,) if isinstance(measured, int | float) else tuple(measured)
