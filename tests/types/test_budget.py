"""Budgets: which limits go together, and how they read."""

from __future__ import annotations

from typing import Any

import pytest

from blockwright.errors import BudgetError
from blockwright.types import Budget, Phase, Workload


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"bits": 3.5}, "3.5 bits per weight"),
        ({"ratio": 0.3}, "0.3 of the original's size"),
        ({"ram_bytes": 100, "context": 64}, "100 bytes of memory at 64 tokens"),
        (
            {"size_bytes": 9, "ram_bytes": 100, "speedup": 2, "phase": Phase.PREFILL, "batch": 4},
            "9 bytes, 100 bytes of memory at 512 tokens,"
            " 2 times as fast in prefill of batch 4 at 512 tokens",
        ),
    ],
)
def test_limits_combine_and_read_well(given: dict[str, Any], text: str) -> None:
    assert str(Budget(**given)) == text


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "0 limits given, give one of --bits"),
        ({"bits": 3, "ratio": 0.5, "ram_bytes": 9}, "2 limits on the size.*combine with it"),
        ({"ram_bytes": 0}, "0 is not positive"),
        ({"speedup": 1.0}, "a speedup of 1 is no speedup; give more than 1"),
        ({"speedup": -2.0}, "-2.0 is not positive"),
        ({"speedup": 2.0, "batch": 0}, "batch 0 and context 512: give 1 or more"),
        ({"ram_bytes": 9, "context": 0}, "context 0: give 1 or more"),
    ],
)
def test_what_is_no_budget_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(BudgetError, match=words) as caught:
        Budget(**given)
    assert "\n" not in str(caught.value)


def test_tables_count_unless_bits_are_the_only_limit() -> None:
    assert not Budget(bits=3).counts_files
    assert Budget(bits=3, ram_bytes=9).counts_files
    assert Budget(speedup=2).counts_files
    assert Budget(ratio=0.5).counts_files


def test_a_workload_survives_json() -> None:
    workload = Workload(phase=Phase.PREFILL, batch=3, context=77)
    assert Workload.from_json(workload.to_json()) == workload
    assert Budget(speedup=2, phase=Phase.PREFILL, batch=3, context=77).workload == workload
