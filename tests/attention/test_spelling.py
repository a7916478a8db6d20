"""A policy's text and the policy are one."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockwright.attention.spelling import policies_of, policy_of_spec, spec_of, text_of
from blockwright.errors import AttentionError
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


def test_a_file_gives_each_block_its_policy(tmp_path: Path) -> None:
    path = tmp_path / "policies.json"
    assert policies_of("mean@keep=8") == "mean@keep=8"
    path.write_text('{"0": "dense", "3": "mean@keep=8"}', encoding="utf-8")
    assert policies_of(str(path)) == {0: "dense", 3: "mean@keep=8"}


@pytest.mark.parametrize("text", ["{", "[]", '{"first": "mean"}', '{"0": 3}'])
def test_a_file_of_something_else_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "policies.json"
    with pytest.raises(AttentionError, match="No such file"):
        policies_of(str(path))
    path.write_text(text, encoding="utf-8")
    with pytest.raises(AttentionError, match=r"policies .*json"):
        policies_of(str(path))
