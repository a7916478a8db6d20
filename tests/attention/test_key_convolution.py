"""The convolution over keys: nothing at first, causal, the same token by token."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from blockwright.attention.key_convolution import KeyConvolution
from blockwright.errors import AttentionError


def made(width: int = 3) -> tuple[KeyConvolution, Tensor]:
    generator = torch.Generator().manual_seed(0)
    convolution = KeyConvolution(8, width)
    convolution.weight.data = torch.randn(8, width, generator=generator)
    return convolution, torch.randn(2, 20, 8, generator=generator)


def test_zero_weights_change_nothing() -> None:
    _, keys = made()
    assert torch.equal(KeyConvolution(8)(keys)[0], keys)


@pytest.mark.parametrize("width", [1, 3, 5])
def test_it_is_the_depthwise_convolution(width: int) -> None:
    convolution, keys = made(width)
    padded = F.pad(keys.mT, (width - 1, 0))
    mixed = F.conv1d(padded, convolution.weight.flip(-1)[:, None], groups=8).mT
    torch.testing.assert_close(convolution(keys)[0], keys + F.silu(mixed))


def test_later_keys_change_nothing() -> None:
    convolution, keys = made()
    changed = keys.clone()
    changed[:, 11:] = 7.0
    assert torch.equal(convolution(changed)[0][:, :11], convolution(keys)[0][:, :11])


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("size", [1, 3, 20])
def test_parts_of_a_text_give_what_the_whole_gives(width: int, size: int) -> None:
    convolution, keys = made(width)
    before, found = None, []
    for part in keys.split(size, 1):
        output, before = convolution(part, before)
        found.append(output)
    torch.testing.assert_close(torch.cat(found, 1), convolution(keys)[0])


def test_no_taps_are_refused() -> None:
    with pytest.raises(AttentionError, match="got 0 taps"):
        KeyConvolution(8, 0)
