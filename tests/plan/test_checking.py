"""Plans that were edited by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blockwright.errors import PlanError
from blockwright.plan import check_plan, resolve_edited, solve, unbuilt
from blockwright.types import Budget, Choice, Plan
from tests.plan.problems import option, problem_of

INNER = ("layers.0.q", "layers.0.k")
PROBLEM = problem_of(
    [
        *(option(site, "keep", 200, 0.0) for site in (*INNER, "layers.1.q")),
        *(option(site, "int4:gptq", 50, 1.0) for site in (*INNER, "layers.1.q")),
        *(option(site, "int2:gptq", 25, 4.0) for site in (*INNER, "layers.1.q")),
        *(option(f"experts[{i}]", "keep", 200, 0.0, tie="experts") for i in range(2)),
        *(option(f"experts[{i}]", "int4:gptq", 50, 1.0, tie="experts") for i in range(2)),
        option("layers.0", "keep", 0, 0.0, weights=0),
        option("layers.0", "drop", 0, 9.0, weights=0, contains=INNER, other_bytes=-10),
    ]
)


def plan() -> Plan:
    return solve(PROBLEM, Budget(bits=6))


def edited(changes: dict[str, str | None]) -> Plan:
    """The plan with candidates changed as a user would: figures and keys are left as they were."""
    choices = dict(plan().choices)
    for site, candidate in changes.items():
        if candidate is None:
            del choices[site]
        else:
            before = choices.get(site, Choice(candidate="keep", stored_bytes=7, loss=7.0))
            choices[site] = replace(before, candidate=candidate)
    return replace(plan(), choices=choices)


def test_a_solved_plan_passes_and_resolves_to_itself() -> None:
    check_plan(plan(), PROBLEM)
    assert resolve_edited(plan(), PROBLEM) == plan()


def test_an_edit_is_recounted_from_the_problem() -> None:
    found = resolve_edited(edited({"layers.1.q": "int2:gptq"}), PROBLEM)
    assert found.choices["layers.1.q"] == Choice(
        candidate="int2:gptq", stored_bytes=25, loss=4.0, key="layers.1.q/int2:gptq"
    )
    assert found.bits_per_weight == 8 * (sum(c.stored_bytes for c in found.choices.values())) / 500
    assert found.loss == sum(choice.loss for choice in found.choices.values())


def test_a_dropped_block_frees_its_bytes_but_stays_in_the_denominator() -> None:
    found = resolve_edited(
        edited({"layers.0": "drop", "layers.0.q": None, "layers.0.k": None}), PROBLEM
    )
    linear_bytes = sum(choice.stored_bytes for choice in found.choices.values())
    assert found.bits_per_weight == 8 * linear_bytes / 500
    assert found.size_bytes == PROBLEM.fixed_bytes + linear_bytes - 10


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers.1.qq": "keep"}, "names layers.1.qq, which .* did you mean layers.1.q?"),
        ({"layers.1.q": None}, "no choice for layers.1.q"),
        ({"layers.0": "drop"}, "also for layers.0, which holds it"),
        ({"layers.1.q": "drop"}, "cannot be dropped"),
        ({"experts[0]": "keep", "experts[1]": "int4:gptq"}, "are tied"),
        ({"layers.1.q": "int4:gptqq"}, "did you mean int4:gptq.*available there: int2"),
        ({"layers.1.q": "keep", "layers.0.q": "keep"}, "over its limit of 6; choose smaller"),
    ],
)
def test_what_an_edit_can_get_wrong_is_one_clear_line(
    changes: dict[str, str | None], words: str
) -> None:
    with pytest.raises(PlanError, match=words) as caught:
        resolve_edited(edited(changes), PROBLEM)
    assert "\n" not in str(caught.value)


def test_a_plan_without_limits_may_be_as_large_as_one_likes() -> None:
    free = replace(edited(dict.fromkeys(plan().choices, "keep")), limits={})
    assert resolve_edited(free, PROBLEM).loss == 0


def test_a_plan_of_another_model_is_refused() -> None:
    with pytest.raises(PlanError, match="another model"):
        check_plan(replace(plan(), fingerprint="f2"), PROBLEM)


def test_candidates_that_are_yet_to_be_built_are_listed() -> None:
    wanted = edited({"layers.1.q": "int3-g64:gptq"})
    check_plan(wanted, PROBLEM)
    assert unbuilt(wanted, PROBLEM) == [("layers.1.q", "int3-g64:gptq")]


def test_two_chosen_sites_that_hold_the_same_one_are_refused() -> None:
    nested = replace(
        PROBLEM,
        options=(*PROBLEM.options, option("layers.0.qk", "int3:awq", 40, 2.0, contains=INNER)),
    )
    both = edited(
        {"layers.0": "drop", "layers.0.qk": "int3:awq", "layers.0.q": None, "layers.0.k": None}
    )
    with pytest.raises(PlanError, match="both hold"):
        check_plan(both, nested)
