"""The three texts of a run: calibration for statistics, selection for choices, held-out for
figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockwright.anatomy import Skeleton
from blockwright.errors import ModelError, TextError
from blockwright.pipeline.presets import (
    CALIBRATION_TOKENS,
    HELDOUT_TOKENS,
    LONGEST_SEQUENCE,
    SELECTION_TOKENS,
)
from blockwright.texts import (
    TokenSet,
    bundled_documents,
    check_disjoint,
    load_tokenizer,
    read_documents,
    split_documents,
    tokenize,
)
from blockwright.types import FitRequest

SHARES_WITHOUT_EVAL_TEXT = {"calibration": 0.8, "selection": 0.1, "held-out": 0.1}
LONGEST_TOKEN = 64
"""Characters per token above which nothing has to be counted."""
SHARES_WITH_EVAL_TEXT = {"calibration": 0.9, "selection": 0.1}


@dataclass(frozen=True)
class Texts:
    """Disjoint token sets, and what the user must know of their origin."""

    calibration: TokenSet
    selection: TokenSet
    heldout: TokenSet
    notes: tuple[str, ...]


def open_texts(request: FitRequest, folder: Path, skeleton: Skeleton) -> Texts:
    """Read, split and tokenize; ``TextError`` for text that is missing, short or used twice."""
    check_text_model(request, skeleton)
    tokenizer = load_tokenizer(folder, trust_remote_code=request.trust_remote_code)
    length = sequence_length(request, skeleton)
    documents, notes = choose_documents(request, tokenizer, length)
    check_disjoint(documents)
    sizes = {
        "calibration": request.calibration_tokens or CALIBRATION_TOKENS[request.preset],
        "selection": SELECTION_TOKENS[request.preset],
        "held-out": request.eval_tokens or HELDOUT_TOKENS,
    }
    asked = {"calibration": request.calibration_tokens, "held-out": request.eval_tokens}
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


def check_text_model(request: FitRequest, skeleton: Skeleton) -> None:
    """Raise ``ModelError`` for a model that does not read text."""
    if skeleton.task == "vision":
        raise ModelError(f"{request.model}: fit needs a text model; images are inspected only")


def choose_documents(
    request: FitRequest, tokenizer: Any, length: int
) -> tuple[dict[str, list[str]], list[str]]:
    """Documents of the three splits, and what the user must know of the held-out ones."""
    heldout = read_documents(request.eval_text) if request.eval_text else None
    if request.calibration is None:
        shipped = "figures are on shipped held-out text: give --eval-text for yours"
        notes = [] if heldout else [shipped]
        return {
            "calibration": bundled_documents("calibration"),
            "selection": bundled_documents("selection"),
            "held-out": heldout or bundled_documents("heldout"),
        }, notes
    documents = read_documents(request.calibration)
    shares = SHARES_WITHOUT_EVAL_TEXT if heldout is None else SHARES_WITH_EVAL_TEXT
    check_enough(documents, tokenizer, length, list(shares), str(request.calibration))
    if heldout is not None:
        check_disjoint({"calibration": documents, "held-out": heldout})
        splits = split_documents(documents, shares, request.seed)
        return {**splits, "held-out": heldout}, []
    splits = split_documents(documents, shares, request.seed)
    return splits, ["held-out text: a tenth of the calibration text, not calibrated on"]


def check_enough(
    documents: Sequence[str], tokenizer: Any, length: int, splits: Sequence[str], where: str
) -> None:
    """Raise ``TextError`` for a text that has not even one sequence for every split."""
    needed = length * len(splits)
    if sum(map(len, documents)) > LONGEST_TOKEN * needed:
        return
    found = sum(len(tokenizer(text, verbose=False)["input_ids"]) for text in documents)
    if found < needed:
        raise TextError(
            f"text {where} has {found} tokens, at least {needed} are needed (one sequence of"
            f" {length} for each of {', '.join(splits)}); give a longer text or a smaller"
            " --sequence-length"
        )


def sequence_length(request: FitRequest, skeleton: Skeleton) -> int:
    """Tokens per sequence: as asked, at most what the model's positions allow."""
    limit = getattr(skeleton.config.get_text_config(), "max_position_embeddings", None)
    longest = int(limit) if limit else LONGEST_SEQUENCE
    return min(request.sequence_length or LONGEST_SEQUENCE, longest)
