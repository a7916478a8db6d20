"""Plans that were measured: each once, told apart, the one that was taken first."""

from __future__ import annotations

from dataclasses import replace

from blockwright.report import measured_plans
from blockwright.types import Choice, Plan, Quality

FITTED = Quality(tokens=8, kl_divergence=0.02)
RIVAL = Quality(tokens=8, kl_divergence=0.05)


def plan(candidate: str, key: str, loss: float, name: str = "plan") -> Plan:
    choice = Choice(candidate=candidate, stored_bytes=4, loss=0.1, key=key)
    return Plan(
        fingerprint="f",
        statistics="s",
        budget="4 bits per weight",
        bits_per_weight=4.0,
        size_bytes=100,
        loss=0.1,
        choices={"a": choice},
        name=name,
        measured={"selection_loss": loss},
    )


def test_rounds_refinement_and_healing_have_names_of_their_own() -> None:
    uniform = plan("int4-g64:gptq", "u", 0.06, "uniform int4-g64:gptq")
    first, second = plan("int4-g32:gptq", "1", 0.05), plan("int5-g32:gptq", "2", 0.04)
    refined = plan("int5-g32:gptq", "3", 0.03)
    healed = replace(refined, healed={"0": "4"}, measured={"selection_loss": 0.02})
    found = measured_plans(
        healed, uniform, (uniform, first, second, refined, uniform), FITTED, RIVAL
    )
    assert [item.name for item in found] == [
        *("plan 2, healed", "plan 2, refined", "plan 2", "plan 1", "uniform int4-g64:gptq"),
    ]
    assert [item.taken for item in found] == [True, False, False, False, False]
    assert [item.heldout_loss for item in found] == [0.02, None, None, None, 0.05]
    assert [item.uniform for item in found] == [False, False, False, False, True]


def test_a_plan_that_was_not_measured_has_no_row() -> None:
    taken = plan("int4-g64:gptq", "1", 0.05)
    other = replace(plan("int3-g64:gptq", "2", 0.1), measured={})
    assert [item.name for item in measured_plans(taken, None, (other,), FITTED, None)] == ["plan"]


def test_a_uniform_plan_that_was_taken_is_one_row() -> None:
    uniform = plan("int4-g64:gptq", "u", 0.06, "uniform int4-g64:gptq")
    found = measured_plans(uniform, uniform, (uniform,), FITTED, FITTED)
    assert [(item.taken, item.uniform) for item in found] == [(True, True)]
