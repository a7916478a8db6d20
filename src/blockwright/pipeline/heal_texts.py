"""The texts of a healing: all there is to train on, some to choose on, some to report on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from blockwright.anatomy import Skeleton
from blockwright.pipeline.presets import HELDOUT_TOKENS
from blockwright.pipeline.texts import (
    Texts,
    check_text_model,
    choose_documents,
    sequence_length,
)
from blockwright.texts import check_disjoint, load_tokenizer, tokenize
from blockwright.types import FitRequest

HEAL_LENGTH = 512
"""Tokens per sequence, unless others are asked: short ones make a batch of many."""
MOST_TOKENS = 20_000_000
SELECTION_TOKENS = 8_192


def open_heal_texts(request: FitRequest, folder: Path, skeleton: Skeleton) -> Texts:
    """Texts as a fit splits them, the calibration text whole; ``TextError`` as there.

    ``request``: its texts, tokens, lengths and seed.
    """
    check_text_model(request, skeleton)
    if request.sequence_length is None:
        request = replace(request, sequence_length=HEAL_LENGTH)
    tokenizer = load_tokenizer(folder, trust_remote_code=request.trust_remote_code)
    length = sequence_length(request, skeleton)
    documents, notes = choose_documents(request, tokenizer, length)
    check_disjoint(documents)
    sizes = {
        "calibration": MOST_TOKENS,
        "selection": SELECTION_TOKENS,
        "held-out": request.eval_tokens or HELDOUT_TOKENS,
    }
    asked = {"held-out": request.eval_tokens}
    sets = {
        name: tokenize(
            documents[name],
            tokenizer,
            length,
            tokens,
            request.seed if name == "calibration" else 0,
            at_least=asked.get(name) or 1,
            name=f"{name} text",
        )
        for name, tokens in sizes.items()
    }
    return Texts(sets["calibration"], sets["selection"], sets["held-out"], tuple(notes))
