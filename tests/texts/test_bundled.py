"""The shipped texts: read from the package, disjoint, and missing loudly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blockwright.errors import TextError
from blockwright.texts import BUNDLED_SPLITS, bundled, bundled_documents, check_disjoint


def write_bundle(package: Path) -> None:
    folder = package / "bundled" / "texts"
    folder.mkdir(parents=True)
    for split in BUNDLED_SPLITS:
        lines = [json.dumps({"module": split, "text": f"{split} {i}\n"}) for i in range(3)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_documents_come_from_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bundle(tmp_path)
    monkeypatch.setattr(bundled, "files", lambda _: tmp_path)
    splits = {split: bundled_documents(split) for split in BUNDLED_SPLITS}
    check_disjoint(splits)
    assert splits["selection"] == ["selection 0\n", "selection 1\n", "selection 2\n"]


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(TextError, match="'held-out' is unknown; there are calibration, selection"):
        bundled_documents("held-out")


def test_a_missing_bundle_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "files", lambda _: tmp_path)
    with pytest.raises(TextError, match="is not installed"):
        bundled_documents("heldout")


def test_what_ships_is_disjoint_and_at_most_two_megabytes() -> None:
    splits = {split: bundled_documents(split) for split in BUNDLED_SPLITS}
    check_disjoint(splits)
    size = sum(len(text.encode()) for texts in splits.values() for text in texts)
    assert 100_000 < size <= 2_000_000
