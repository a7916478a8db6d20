"""The stream of training tokens."""

from __future__ import annotations

import pytest
import torch

from blockwright.errors import TextError
from blockwright.training import TokenStream

DOCUMENTS = [torch.arange(10), torch.arange(20, 27)]


def test_a_position_decides_the_window() -> None:
    forward = [TokenStream(DOCUMENTS, 3).window(position, 4) for position in range(0, 32, 4)]
    stream = TokenStream(DOCUMENTS, 3)
    for position in reversed(range(0, 32, 4)):
        assert torch.equal(stream.window(position, 4), forward[position // 4])


def test_an_epoch_holds_every_token_but_the_last_incomplete_window() -> None:
    stream = TokenStream(DOCUMENTS, 0)
    for epoch in range(3):
        seen = torch.cat([stream.window(epoch * 16 + 4 * i, 4) for i in range(4)])
        assert len(set(seen.tolist())) == 16
        assert set(seen.tolist()) < set(torch.cat(DOCUMENTS).tolist())


def test_the_digest_is_of_tokens_and_order() -> None:
    assert TokenStream(DOCUMENTS, 0).digest == TokenStream(DOCUMENTS, 0).digest
    assert TokenStream(DOCUMENTS, 0).digest != TokenStream(DOCUMENTS, 1).digest
    assert TokenStream(DOCUMENTS, 0).digest != TokenStream(DOCUMENTS[:1], 0).digest


def test_a_text_shorter_than_a_step_is_refused() -> None:
    with pytest.raises(TextError, match="17 tokens, 18 are needed"):
        TokenStream(DOCUMENTS, 0).window(0, 18)
