"""Claims about the plan: the program's answer against exhaustive search."""

from __future__ import annotations

from collections.abc import Iterator

from blockwright.plan import plan_of, solve
from blockwright.types import Budget
from tests.claims.ledger import Grade, claim
from tests.plan.problems import cheapest_within, scattered_problem


@claim(
    method="milp",
    family="plan",
    paper="Land, Doig, branch and bound, 1960; solved by HiGHS",
    says="the plan has the least predicted loss of all plans within the budget",
    measures="loss / that of exhaustive search - 1, 6 sites, 4 candidates, 4 budgets",
    grade=Grade.HARD,
    at_least=-1e-9,
    at_most=1e-9,
)
def test_the_plan_is_the_best_of_all(seed: int) -> Iterator[float]:
    problem = scattered_problem(sites=6, candidates=4, seed=seed)
    for bits in (4.0, 6.0, 8.0, 10.0):
        least = cheapest_within(problem, Budget(bits=bits))
        if least is not None:
            yield solve(problem, Budget(bits=bits)).loss / least - 1


@claim(
    method="puzzle",
    family="plan",
    paper="Bercovich et al., Puzzle, ICML 2025",
    says="of a library of children the best assembly is found, and of the parent the parent",
    measures="loss / that of exhaustive search - 1, 4 blocks, 5 children; loss of the parent",
    grade=Grade.HARD,
    at_least=-1e-9,
    at_most=1e-9,
)
def test_the_best_assembly_of_children_is_found(seed: int) -> Iterator[float]:
    problem = scattered_problem(sites=4, candidates=6, seed=seed)
    for bits in (5.0, 8.0, 12.0):
        least = cheapest_within(problem, Budget(bits=bits))
        if least is not None:
            yield solve(problem, Budget(bits=bits)).loss / least - 1
    parent = [option for option in problem.options if option.candidate == "keep"]
    yield plan_of(problem, parent, budget="").loss
