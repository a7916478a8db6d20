"""The texts that ship with the package: modules of Python's standard library, in three splits."""

from __future__ import annotations

from importlib.resources import files

from blockwright.errors import TextError
from blockwright.texts.read import parse_jsonl

BUNDLED_SPLITS = ("calibration", "selection", "heldout")


def bundled_documents(split: str) -> list[str]:
    """Documents of one shipped split; raises ``TextError`` if it is unknown or not installed."""
    if split not in BUNDLED_SPLITS:
        raise TextError(f"bundled text {split!r} is unknown; there are {', '.join(BUNDLED_SPLITS)}")
    source = files("blockwright") / "bundled" / "texts" / f"{split}.jsonl"
    if not source.is_file():
        raise TextError(
            f"bundled text {source} is not installed; reinstall blockwright or name a text yourself"
        )
    return parse_jsonl(source.read_text(encoding="utf-8"), str(source))
