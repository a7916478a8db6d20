"""Corrects predicted losses by measured plans.

Predictions add up site by site; what plans really cost says by how much that is wrong, and for
which kinds of site (those of one name, over all blocks).  All linears get the factor that fits the
measured plans best (all of one family of formats, where there are several), and each kind its own
near it, by ridge regression of the measured on the predicted losses of its sites.  Tables, dropped
blocks and narrower parts were measured, not predicted: theirs stay near 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from blockwright.plan.families import family_of
from blockwright.types import Candidate, Option, Plan, Problem

RIDGE = 0.01
"""Weight of the wish that kinds differ little, against relative errors of predicted plans."""
LARGEST_FACTOR = 4.0
INDEX = re.compile(r"(?<=[.\[])\d+(?=[.\]]|$)")
STRUCTURES = ("drop", "narrow", "heads")
"""Formats whose losses were measured, wherever they stand."""
AS = " as "
"""Between a kind of site and a family, in the name of a kind."""
MEASURED = "selection_loss"
"""The figure of a measured plan that its predicted loss stands for."""


def kind_of(option: Option) -> str:
    """The site's name without block and expert numbers; ``drop`` for dropped blocks and parts and
    those that take them over, ``narrow`` and ``heads`` for narrower parts.  Families of formats are
    kinds of their own.
    """
    structure = Candidate.parse(option.candidate).format.partition("-")[0]
    structure = "drop" if structure == "fuse" else structure
    if structure in STRUCTURES:
        return structure
    family, site = family_of(option.candidate), INDEX.sub("*", option.site)
    return f"{site}{AS}{family}" if family else site


def correction_factors(problem: Problem, measured: Sequence[Plan]) -> dict[str, float]:
    """Kind of site -> factor, from plans measured on the selection text.

    A plan that lost nothing there (everything stored without loss) tells no ratio.
    """
    options = {(option.site, option.candidate): option for option in problem.options}
    kinds = sorted({kind_of(option) for option in problem.options})
    place = {kind: index for index, kind in enumerate(kinds)}
    rows = []
    for plan in (each for each in measured if each.measured[MEASURED] > 0):
        share_K = np.zeros(len(kinds))
        for site, choice in plan.choices.items():
            option = options[site, choice.candidate]
            share_K[place[kind_of(option)]] += option.loss / plan.measured[MEASURED]
        for pair in problem.pairs:
            if all(_chose(plan, *item) for item in zip(pair.sites, pair.candidates, strict=True)):
                share_K[place["drop"]] += pair.loss / plan.measured[MEASURED]
        rows.append(share_K)
    share_PK = np.array(rows).reshape(len(rows), len(kinds))
    normal_KK = share_PK.T @ share_PK + RIDGE * np.eye(len(kinds))
    linear_K = np.zeros(len(kinds), dtype=bool)
    linear_K[[place[kind_of(option)] for option in problem.options if option.weights]] = True
    linear_K[[place[kind] for kind in STRUCTURES if kind in place]] = False
    shared_K = _shared_factors(share_PK, linear_K, [kind.partition(AS)[2] for kind in kinds])
    target_K = share_PK.sum(axis=0) + RIDGE * shared_K
    factor_K = np.linalg.solve(normal_KK, target_K)
    factor_K = factor_K.clip(1 / LARGEST_FACTOR, LARGEST_FACTOR)
    return dict(zip(kinds, map(float, factor_K), strict=True))


def _shared_factors(
    share_PK: NDArray[np.float64], linear_K: NDArray[np.bool_], family_K: Sequence[str]
) -> NDArray[np.float64]:
    """For linears the one factor of their family, near that of all; 1 for all else."""
    overall = _shared_factor(share_PK, linear_K)
    families = sorted({f for f, linear in zip(family_K, linear_K, strict=True) if linear})
    member_FK = np.array([[f == family for f in family_K] for family in families]) & linear_K
    factor_F = np.full(len(families), overall)
    if len(families) > 1:
        share_PF = share_PK @ member_FK.T
        rest_P = share_PK[:, ~linear_K].sum(1)
        normal_FF = share_PF.T @ share_PF + RIDGE * np.eye(len(families))
        factor_F = np.linalg.solve(normal_FF, share_PF.T @ (1 - rest_P) + RIDGE * overall)
    return np.where(linear_K, factor_F @ member_FK, 1.0) if families else np.ones(len(linear_K))


def _shared_factor(share_PK: NDArray[np.float64], linear_K: NDArray[np.bool_]) -> float:
    """The one factor of all linears that brings predicted plans closest to measured ones."""
    linear_P, rest_P = share_PK[:, linear_K].sum(1), share_PK[:, ~linear_K].sum(1)
    energy = float(linear_P @ linear_P)
    return float(linear_P @ (1 - rest_P)) / energy if energy > 1e-6 else 1.0


def corrected(problem: Problem, factors: Mapping[str, float]) -> Problem:
    """The problem with every predicted loss times its kind's factor."""
    options = tuple(
        replace(option, loss=option.loss * factors.get(kind_of(option), 1.0))
        for option in problem.options
    )
    pairs = tuple(
        replace(pair, loss=pair.loss * factors.get("drop", 1.0)) for pair in problem.pairs
    )
    return replace(problem, options=options, pairs=pairs)


def _chose(plan: Plan, site: str, candidate: str) -> bool:
    return site in plan.choices and plan.choices[site].candidate == candidate
