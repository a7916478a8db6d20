"""Figures as text: digits, signs and units."""

from __future__ import annotations

import math

import pytest

from blockwright.report import group_reasons
from blockwright.report.scales import Scale, linear, logarithmic
from blockwright.report.wording import (
    change,
    column,
    count,
    ranges,
    ratio,
    small,
    split_candidate,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0.0, "0"), (0.00097, "0.00097"), (0.033, "0.033"), (1.25, "1.2"), (140.4, "140")),
        *((2.1e-5, "2.1×10⁻⁵"), (3e7, "3.0×10⁷"), (None, "–"), (math.nan, "–")),
    ],
)
def test_small_has_two_digits(value: float | None, text: str) -> None:
    assert small(value) == text


def test_a_column_has_one_number_of_decimals() -> None:
    assert column([0.033, 0.00097, None, 1.0]) == ["0.03300", "0.00097", "–", "1.00000"]
    assert column([218.0, 1310.0]) == ["218", "1,310"]
    assert column([None, None]) == ["–", "–"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.376, "0.38×"), (0.999, "1.0×"), (2.44, "2.4×"), (9.97, "10×"), (None, "–")],
)
def test_ratios(value: float | None, text: str) -> None:
    assert ratio(value) == text


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [(48.361, 48.347, "−0.03%"), (7.5, 7.5, "+0.00%"), (10, 12.21, "+22.1%"), (0, 1, "–")],
)
def test_changes_have_signs(before: float, after: float, text: str) -> None:
    assert change(before, after) == text


def test_numbers_in_words() -> None:
    assert [count(v) for v in (4096, 5.5e6, 1.1e9)] == ["4,096", "5.5 million", "1.1 billion"]
    assert ranges([3, 5, 6, 7, 9]) == "3, 5 to 7, 9"


def test_candidates_are_split_into_format_and_method() -> None:
    assert split_candidate("int4-g64:awq>gptq") == ("int4-g64", "awq>gptq")
    assert split_candidate("sparse2of4+int4-g64:sparsegpt@x=1") == (
        "sparse2of4+int4-g64",
        "sparsegpt@x=1",
    )
    assert split_candidate("keep") == ("keep", "")


def test_ticks_are_round_and_inside() -> None:
    scale = linear([2.2, 8.1], 0, 100)
    ticks = scale.ticks(8, lambda value: f"{value:g}")
    assert [tick.text for tick in ticks] == ["2", "3", "4", "5", "6", "7", "8"]
    decades = logarithmic([2e-4, 3.0], 100, 0).ticks(7, lambda value: f"{value:g}")
    assert [t.text for t in decades] == ["0.0001", "0.001", "0.01", "0.1", "1"]
    assert all(0 <= tick.at <= 100 for tick in (*ticks, *decades))


def test_scales_take_equal_values_and_keep_order() -> None:
    assert linear([4.0, 4.0], 0, 100)(4.0) == 50
    assert logarithmic([0.01], 0, 100)(0.01) == 50
    scale = Scale(1.0, 100.0, 0, 100, logarithmic=True)
    assert scale(10.0) == 50


def test_reasons_are_grouped_without_their_sites() -> None:
    groups = group_reasons(
        {
            "a int4-g128:gptq": "a: group size 128 does not divide 96 inputs",
            "b int4-g128:gptq": "b: group size 128 does not divide 96 inputs",
            "b int3-g128:gptq": "b: group size 128 does not divide 96 inputs",
            "c int2:rtn": "not finite",
        }
    )
    first = groups[0]
    assert first.reason == "group size 128 does not divide 96 inputs"
    assert (first.variants, first.site_count, first.sites) == (3, 2, ("a", "b"))
    assert first.candidates == ("int4-g128:gptq", "int3-g128:gptq")
    assert [group.variants for group in groups] == [3, 1]
