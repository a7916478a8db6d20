"""Families of formats of linears, and problems with one of them on offer.

Errors of a grid are independent from output to output, which is what predictions take them to be.
Those of thin factors, of sums of products and of zeros that are made up for by what stays are not,
and predictions of such formats are wrong by factors of their own, two to five on the bundled model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from blockwright.types import Candidate, Problem

STRUCTURED = ("armor", "id", "kron", "panel", "rank", "ranks", "sparse")
"""Formats that are families of their own."""
GRIDS = ""
"""The family of all others."""
STEM = re.compile(r"[a-z]+")


def family_of(candidate: str) -> str:
    """A candidate's family; zeros with a product are one of their own."""
    parsed = Candidate.parse(candidate)
    stem = STEM.match(parsed.format)
    if stem is None or stem[0] not in STRUCTURED:
        return GRIDS
    return f"{stem[0]}&" if parsed.plus else stem[0]


def families_of(candidates: Iterable[str]) -> list[str]:
    """The families among candidates of linears, in order."""
    return sorted({family_of(each) for each in candidates if each != "keep"})


def families_on_offer(problem: Problem) -> list[str]:
    """The families of formats of linears that a problem offers."""
    linears = (o for o in problem.options if o.weights and not o.contains)
    return families_of(option.candidate for option in linears)


def only_family(problem: Problem, family: str) -> Problem:
    """The problem with one family at linears; blocks, parts and groups are left to these."""
    options = tuple(
        option
        for option in problem.options
        if option.candidate == "keep"
        or not (option.contains or (option.weights and family_of(option.candidate) != family))
    )
    return replace(problem, options=options, pairs=())
