"""Documents into windows of tokens."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockwright.errors import TextError
from blockwright.texts.split import cut

if TYPE_CHECKING:
    from torch import Tensor

ENCODE_CHARACTERS = 1_000_000
"""Longer documents are encoded in pieces, and only as many as are needed."""
PROBE = "a b"
"""Any text with at least one ordinary token, to see which tokens a tokenizer adds around it."""


@dataclass(frozen=True, kw_only=True)
class TokenSet:
    """Full windows of one text."""

    ids: Tensor
    """int64 [N, T]: N windows of T tokens, no padding."""
    digest: str
    """Hex digest of the shape and the tokens."""
    description: str
    """Where they came from, for people."""

    @property
    def tokens(self) -> int:
        return self.ids.numel()

    @property
    def sequence_length(self) -> int:
        return self.ids.shape[1]


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model folder; ``TextError`` if its files are missing or unreadable."""
    from transformers import AutoTokenizer

    advice = "copy the original's tokenizer files there (tokenizer.json, tokenizer_config.json)"
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # what is wrong in its files shows in transformers in any form
        text = str(error).strip() or type(error).__name__
        reason = text.partition("\n")[0].removesuffix(" from one of:").rstrip()
        raise TextError(
            f"no tokenizer could be loaded from {folder}: {reason}; {advice}"
        ) from error
    if not isinstance(tokenizer.model_max_length, int | float):
        raise TextError(
            f"tokenizer of {folder}: model_max_length is {tokenizer.model_max_length!r}, a number"
            f" is needed; {advice}"
        )
    names = [str(name) for name in tokenizer.vocab_files_names.values()]
    if names and not any((folder / name).exists() for name in names):
        raise TextError(f"tokenizer files are missing in {folder}; {advice}")
    return tokenizer


def tokenize(
    documents: Sequence[str],
    tokenizer: Any,
    sequence_length: int,
    tokens: int,
    seed: int,
    *,
    at_least: int | None = None,
    name: str = "text",
) -> TokenSet:
    """The first ``tokens`` tokens, in whole windows, of the documents shuffled by ``seed``.

    Every document is opened and closed as the tokenizer does it; if it adds nothing, documents are
    opened by its begin token or, without one, closed by its end token.  A window that starts inside
    a document starts with the tokens that the tokenizer itself puts before a text, as generation
    would.  Fewer windows come back when the text is short, but not below ``at_least`` tokens
    (``tokens`` if None): then ``TextError``.
    """
    wanted = max(1, tokens // sequence_length)
    needed = min(wanted, max(1, (tokens if at_least is None else at_least) // sequence_length))
    marks = _marks(tokenizer)
    if sequence_length < len(marks.lead) + 2:
        raise TextError(
            f"sequence length {sequence_length} is too short; {len(marks.lead) + 2} tokens or more"
        )
    stream = _encode_until(documents, tokenizer, marks, seed, enough=wanted * sequence_length)
    windows = list(_windows(stream, marks.lead, sequence_length))[:wanted]
    if len(windows) < needed:
        raise TextError(
            f"{name} has {len(stream)} tokens, {needed * sequence_length} are needed"
            f" ({needed} sequences of {sequence_length}); give a longer text or ask for fewer"
        )
    return token_set(windows, name)


@dataclass(frozen=True)
class _Marks:
    """Special tokens around documents."""

    opening: list[int]
    closing: list[int]
    lead: list[int]
    """What every window starts with."""


def _marks(tokenizer: Any) -> _Marks:
    plain = _encode(tokenizer, PROBE)
    full = list(tokenizer(PROBE, verbose=False)["input_ids"])
    if not plain:
        raise TextError(
            "the tokenizer makes no tokens; its files in the model folder are incomplete"
        )
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            lead, closing = full[:start], full[start + len(plain) :]
            if lead or closing:
                return _Marks(lead, closing, lead)
    if tokenizer.bos_token_id is not None:
        return _Marks([tokenizer.bos_token_id], [], [])
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    return _Marks([], [] if end is None else [end], [])


def _encode_until(
    documents: Sequence[str], tokenizer: Any, marks: _Marks, seed: int, enough: int
) -> list[int]:
    """Tokens of the shuffled documents; stops soon after ``enough``."""
    order = list(range(len(documents)))
    random.Random(seed).shuffle(order)
    stream: list[int] = []
    for index in order:
        if len(stream) >= enough:
            break
        stream += marks.opening
        for piece in cut(documents[index], ENCODE_CHARACTERS):
            if len(stream) < enough:
                stream += _encode(tokenizer, piece)
        stream += marks.closing
    return stream


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _windows(stream: Sequence[int], lead: list[int], length: int) -> Iterator[list[int]]:
    """Full windows; ``lead`` is put before those that do not start with it already."""
    position = 0
    while True:
        starts_document = list(stream[position : position + len(lead)]) == lead
        before = [] if starts_document else lead
        taken = list(stream[position : position + length - len(before)])
        if len(before) + len(taken) < length:
            return
        yield before + taken
        position += len(taken)


def opening_tokens(tokenizer: Any) -> list[int]:
    """The tokens in front of a document: its own, or those that close the one before; or none."""
    marks = _marks(tokenizer)
    return marks.opening or marks.closing


def mix_windows(
    first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]
) -> list[Sequence[int]]:
    """Windows of both, each spread evenly over the whole and in its own order."""
    places = [
        ((i + 0.5) / len(windows), w) for windows in (first, second) for i, w in enumerate(windows)
    ]
    return [window for _, window in sorted(places, key=lambda place: place[0])]


def token_set(windows: Sequence[Sequence[int]], name: str) -> TokenSet:
    """Windows of one length as a ``TokenSet``."""
    import torch

    ids = torch.tensor(windows, dtype=torch.int64)
    digest = hashlib.sha256(repr(tuple(ids.shape)).encode())
    digest.update(ids.numpy().astype("<i8").tobytes())
    return TokenSet(
        ids=ids,
        digest=digest.hexdigest(),
        description=f"{ids.shape[0]} sequences of {ids.shape[1]} tokens from {name}",
    )
