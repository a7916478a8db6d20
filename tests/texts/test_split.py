"""Splits never share text, and depend on the text and the seed only."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockwright.errors import TextError
from blockwright.texts import check_disjoint, split_documents
from blockwright.texts.split import cut

SHARES = {"calibration": 0.5, "selection": 0.25, "heldout": 0.25}


def make_documents(count: int, seed: int = 0) -> list[str]:
    chooser = random.Random(seed)
    return [
        "".join(f"line {chooser.random()}\n" for _ in range(chooser.randint(3, 30)))
        for _ in range(count)
    ]


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 60), seed=st.integers(0, 5), repeat=st.integers(1, 3))
def test_splits_are_disjoint_and_lose_nothing(count: int, seed: int, repeat: int) -> None:
    documents = make_documents(count) * repeat + ["".join(make_documents(200, 1))]
    splits = split_documents(documents, SHARES, seed)
    check_disjoint(splits)
    lines = [line for texts in splits.values() for text in texts for line in text.splitlines()]
    assert sorted(lines) == sorted({line for text in documents for line in text.splitlines()})


def test_shares_are_kept_by_characters() -> None:
    documents = make_documents(300)
    splits = split_documents(documents, SHARES, 0)
    total = sum(map(len, documents))
    for name, share in SHARES.items():
        assert sum(map(len, splits[name])) / total == pytest.approx(share, abs=0.01)


def test_order_and_repeats_do_not_matter_but_the_seed_does() -> None:
    documents = make_documents(40)
    first = {name: set(texts) for name, texts in split_documents(documents, SHARES, 3).items()}
    again = split_documents(documents[::-1] + documents[:5], SHARES, 3)
    other = split_documents(documents, SHARES, 4)
    assert first == {name: set(texts) for name, texts in again.items()}
    assert first != {name: set(texts) for name, texts in other.items()}


def test_documents_keep_their_order_inside_a_split() -> None:
    documents = make_documents(40)
    for texts in split_documents(documents, SHARES, 0).values():
        assert texts == sorted(texts, key=documents.index)


def test_one_long_file_can_be_split() -> None:
    document = "".join(make_documents(100))
    splits = split_documents([document], SHARES, 0)
    assert all(text in document for texts in splits.values() for text in texts)
    assert all(text.endswith("\n") for texts in splits.values() for text in texts)


def test_a_text_too_short_to_split_is_refused() -> None:
    with pytest.raises(TextError, match="too short to split: 1 passages leave nothing for"):
        split_documents(["only this"], SHARES, 0)


@given(text=st.text(alphabet="ab\n", max_size=60), limit=st.integers(1, 20))
def test_cutting_loses_nothing_and_keeps_the_limit(text: str, limit: int) -> None:
    pieces = list(cut(text, limit))
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= limit for piece in pieces)


def test_the_same_document_in_two_splits_is_refused_naming_both() -> None:
    with pytest.raises(TextError, match=r"'calibration' and 'held-out'.*'def twin\(\):'"):
        check_disjoint(
            {"calibration": ["a", "def twin():\n"], "selection": ["b"], "held-out": ["def twin():"]}
        )


def test_repeats_inside_one_split_are_allowed() -> None:
    check_disjoint({"calibration": ["a", "a"], "selection": ["b"]})
