"""Training tokens: documents in a new order every epoch, cut into windows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from blockwright.errors import TextError


class TokenStream:
    """A position in the stream is one integer, so a resumed run reads what it would have read."""

    def __init__(self, documents: Sequence[Tensor], seed: int) -> None:
        """``documents``: int16 or int64 [T_d], each opened as the tokenizer does it."""
        self.documents, self.seed = documents, seed
        self.epoch_tokens = sum(len(document) for document in documents)
        self.epoch, self.tokens = -1, torch.empty(0, dtype=torch.int16)

    @cached_property
    def digest(self) -> str:
        """Hex digest of the tokens and their order."""
        found = hashlib.sha256(str(self.seed).encode())
        for document in self.documents:
            found.update(document.long().numpy().astype("<i8").tobytes())
        return found.hexdigest()

    def window(self, position: int, count: int) -> Tensor:
        """int64 [count]: tokens from ``position`` on; an epoch's last incomplete window is skipped.

        Raises ``TextError`` when the text is shorter than one window.
        """
        usable = self.epoch_tokens // count * count
        if not usable:
            raise TextError(
                f"training text has {self.epoch_tokens} tokens, {count} are needed for one step;"
                " give a longer text or fewer tokens per step"
            )
        epoch, offset = divmod(position // count * count, usable)
        if epoch != self.epoch:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            order = torch.randperm(len(self.documents), generator=generator).tolist()
            self.tokens, self.epoch = torch.cat([self.documents[i] for i in order]), epoch
        return self.tokens[offset : offset + count].long()
