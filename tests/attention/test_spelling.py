"""A policy's text and the policy are one."""

from __future__ import annotations

import pytest

from blockwright.attention.spelling import policy_of_spec, spec_of, text_of
from blockwright.registry import policy_class, policy_named
from tests.attention.policies import NAMES, small


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_is_read_back_from_its_text(name: str) -> None:
    assert policy_named(text_of(small(name))) == small(name)
    assert text_of(policy_class(name)()) == name


def test_only_what_differs_from_the_defaults_is_spelled() -> None:
    assert text_of(policy_named("mean@shared=true,keep=8")) == "mean@shared=true"


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_gives_the_policy_back(name: str) -> None:
    text = text_of(small(name))
    assert policy_of_spec(spec_of(text)) == text
