"""The map adds up to the plan, whatever decides a site."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blockwright.plan import plan_of
from blockwright.report import map_plan, weigh_blocks
from blockwright.types import Option, Plan, Problem, Site
from tests.report.examples import plan_under, problem_of, sites_of


@pytest.mark.parametrize(("experts", "drops"), [(0, False), (0, True), (8, False)])
def test_rows_add_up_to_the_plan(experts: int, drops: bool) -> None:
    sites = sites_of(6, experts)
    problem = problem_of(sites, drops=drops)
    plan = plan_under(problem, 3.2)
    found = map_plan(sites, plan, problem)
    stored = sum(row.stored_bytes for row in found.rows)
    assert 8 * stored / problem.linear_weights == pytest.approx(plan.bits_per_weight)
    cells = [cell for row in found.rows for cell in row.cells]
    assert sum(cell.predicted_loss for cell in cells) == pytest.approx(plan.loss)
    assert (
        sum(cell.sites for cell in cells) == len([s for s in sites if s.weights and s.shape[0]]) - 1
    )
    assert [table.candidate for table in found.tables] == ["keep"]


def test_columns_keep_the_order_of_blocks_that_differ() -> None:
    sites = [site for site in sites_of(3) if site.id != "model.layers.0.self_attn.k_proj"]
    problem = problem_of(sites)
    found = map_plan(sites, plan_under(problem, 4.0), problem)
    names = [column.name for column in found.columns]
    assert names[:3] == ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
    assert [len(row.cells) for row in found.rows] == [6, 7, 7]


def grouped() -> tuple[list[Site], Problem, Plan]:
    """One choice for q, k and v of block 0."""
    sites = sites_of(2)
    members = tuple(f"model.layers.0.self_attn.{name}_proj" for name in "qkv")
    weights = sum(site.weights for site in sites if site.id in members)
    group = Option(
        site="model.layers.0.qkv",
        candidate="int4-g64:awq>gptq",
        weights=weights,
        stored_bytes=weights // 2,
        loss=0.4,
        key="group",
        contains=members,
    )
    problem = problem_of(sites)
    kept = [o for o in problem.options if o.candidate == "keep" and o.site not in members]
    problem = replace(problem, options=(*problem.options, group))
    return sites, problem, plan_of(problem, [*kept, group], budget="")


def test_one_decision_for_several_sites_is_shared_out_by_weights() -> None:
    sites, problem, plan = grouped()
    cells = map_plan(sites, plan, problem).rows[0].cells
    assert [cell.candidate for cell in cells[:3]] == ["int4-g64:awq>gptq"] * 3
    assert [cell.bits_per_weight for cell in cells[:3]] == pytest.approx([4.0] * 3)
    assert [cell.predicted_loss for cell in cells[:3]] == pytest.approx([0.2, 0.1, 0.1])
    assert cells[0].decided_with == ("k_proj", "v_proj")
    assert cells[3].decided_with == ()


def test_experts_that_differ_are_counted() -> None:
    sites = [replace(site, tie="") for site in sites_of(1, experts=4)]
    problem = problem_of(sites)
    plan = plan_under(problem, 4.0)
    name = "model.layers.0.mlp.experts.down_proj"
    choices = dict(plan.choices)
    for expert, candidate in enumerate(("int2-g32:gptq", "int4-g32:gptq", "int4-g32:gptq", "keep")):
        key = f"{name}[{expert}]"
        choices[key] = replace(choices[key], candidate=candidate)
    cell = map_plan(sites, replace(plan, choices=choices), problem).rows[0].cells[-1]
    assert cell.candidate == "int4-g32:gptq"
    assert cell.others == {"int4-g32:gptq": 2, "int2-g32:gptq": 1, "keep": 1}


def test_shares_of_blocks_add_up_and_drops_are_those_measured() -> None:
    sites = sites_of(5)
    problem = problem_of(sites, drops=True)
    plan, uniform = plan_under(problem, 5.0), plan_under(problem, 3.0)
    found = weigh_blocks(sites, plan, uniform, problem)
    assert sum(block.share for block in found) == pytest.approx(1.0)
    assert sum(block.uniform_share or 0 for block in found) == pytest.approx(1.0)
    drops = [option.loss for option in problem.options if option.candidate == "drop"]
    assert [block.drop_loss for block in found] == drops
    other = replace(problem, loss_unit="squared output error")
    assert {b.drop_loss for b in weigh_blocks(sites, plan, None, other)} == {None}
    assert {b.uniform_share for b in weigh_blocks(sites, plan, None, other)} == {None}
