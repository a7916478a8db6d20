"""Corrections bring predictions to what was measured, and change nothing they know nothing of."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blockwright.plan import (
    corrected,
    correction_factors,
    families_on_offer,
    only_family,
    plan_of,
)
from blockwright.types import Option, Plan, Problem
from tests.plan.problems import option, problem_of

SITES = [f"blocks.{block}.{name}" for block in range(4) for name in ("attn.q", "mlp.up")]
TRUE_FACTOR = {"blocks.*.attn.q": 0.8, "blocks.*.mlp.up": 1.7}


def problem() -> Problem:
    options = []
    for place, site in enumerate(SITES):
        for candidate, size, loss in (("keep", 16, 0.0), ("a", 8, 0.1), ("b", 4, 0.4)):
            options.append(option(site, candidate, size, loss * (1 + 0.2 * place)))
    return problem_of(options)


def measured_plan(candidates: dict[str, str]) -> Plan:
    """A plan whose true loss is the predicted one times each kind's factor."""
    found = {(o.site, o.candidate): o for o in problem().options}
    chosen = [found[site, candidate] for site, candidate in candidates.items()]
    plan = plan_of(problem(), chosen, budget="")
    return replace(plan, measured={"selection_loss": sum(map(true_loss, chosen))})


def true_loss(item: Option) -> float:
    kind = "blocks.*." + item.site.split(".", 2)[2]
    return item.loss * TRUE_FACTOR[kind]


PLANS = [
    measured_plan(dict.fromkeys(SITES, "b")),
    measured_plan({site: "a" if "up" in site else "b" for site in SITES}),
    measured_plan({site: "b" if "up" in site else "a" for site in SITES}),
]


def test_measured_plans_of_different_mixes_give_the_factors() -> None:
    factors = correction_factors(problem(), PLANS)
    assert factors == pytest.approx(TRUE_FACTOR, rel=0.05)


def test_corrected_losses_predict_a_plan_that_was_not_measured() -> None:
    found = corrected(problem(), correction_factors(problem(), PLANS))
    options = {(o.site, o.candidate): o for o in found.options}
    mixed = {site: "ab"[place % 2] for place, site in enumerate(SITES)}
    plan = measured_plan(mixed)
    predicted = sum(options[item].loss for item in mixed.items())
    assert predicted == pytest.approx(plan.measured["selection_loss"], rel=0.05)


def test_one_plan_gives_its_factor_to_all_linears_and_none_to_tables() -> None:
    table = replace(option("embed", "int8", 8, 0.001), weights=0)
    whole = replace(problem(), options=(*problem().options, table))
    plan = measured_plan({site: "b" if "up" in site else "keep" for site in SITES})
    plan = replace(plan, measured={"selection_loss": 1.5 * plan.loss})
    factors = correction_factors(whole, [plan])
    assert factors["blocks.*.attn.q"] == pytest.approx(1.5)
    assert factors["blocks.*.mlp.up"] == pytest.approx(1.5)
    assert factors["embed"] == pytest.approx(1.0)


def test_without_measured_plans_nothing_changes() -> None:
    factors = correction_factors(problem(), [])
    assert factors == pytest.approx(dict.fromkeys(TRUE_FACTOR, 1.0))
    assert corrected(problem(), factors) == problem()


def test_plans_that_keep_everything_say_nothing() -> None:
    kept = plan_of(problem(), [o for o in problem().options if o.candidate == "keep"], budget="")
    kept = replace(kept, measured={"selection_loss": 1e-9})
    assert correction_factors(problem(), [kept]) == pytest.approx(dict.fromkeys(TRUE_FACTOR, 1.0))


def test_factors_stay_within_bounds() -> None:
    wild = replace(PLANS[0], measured={"selection_loss": 1e6})
    assert all(0.25 <= factor <= 4.0 for factor in correction_factors(problem(), [wild]).values())


def structured_problem() -> Problem:
    """Sites with low rank, zeros and a grid, whose losses are wrong by 3, 2 and 1."""
    options = []
    for place, site in enumerate(SITES):
        for candidate, size, loss in (
            ("keep", 16, 0.0),
            ("id-p50:lord", 8, 0.1),
            ("sparse50:sparsegpt", 9, 0.12),
            ("int4-g64:gptq", 4, 0.2),
        ):
            options.append(option(site, candidate, size, loss * (1 + 0.2 * place)))
    return problem_of(options)


def test_families_of_formats_have_factors_of_their_own() -> None:
    true = {"id": 3.0, "sparse": 2.0, "": 1.0}
    problem, plans = structured_problem(), []
    assert families_on_offer(problem) == ["", "id", "sparse"]
    for family, factor in true.items():
        alone = only_family(problem, family)
        assert families_on_offer(alone) == [family]
        chosen = [o for o in alone.options if o.candidate != "keep"]
        loss = sum(item.loss for item in chosen) * factor
        plans.append(replace(plan_of(alone, chosen, budget=""), measured={"selection_loss": loss}))
    factors = correction_factors(problem, plans)
    for family, factor in true.items():
        kind = "blocks.*.mlp.up" + (f" as {family}" if family else "")
        assert factors[kind] == pytest.approx(factor, rel=0.05)


def test_one_family_leaves_blocks_and_parts_to_their_linears() -> None:
    drop = replace(option("blocks.0", "drop", 0, 0.5), contains=tuple(SITES[:2]), weights=0)
    keep = replace(option("blocks.0", "keep", 0, 0.0), weights=0)
    whole = replace(structured_problem(), options=(*structured_problem().options, keep, drop))
    offered = {(o.site, o.candidate) for o in only_family(whole, "id").options}
    assert ("blocks.0", "drop") not in offered
    assert ("blocks.0", "keep") in offered
    assert {candidate for _, candidate in offered} == {"keep", "id-p50:lord"}
