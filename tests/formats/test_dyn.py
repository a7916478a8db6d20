"""dyn formats: names, bytes, and small weights beside large ones."""

from __future__ import annotations

import pytest
import torch

from blockwright.errors import CandidateError, FormatError
from blockwright.formats.dyn import DynFormat


@pytest.mark.parametrize("name", ["dyn8", "dyn4-g64", "dyn8-g256"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(CandidateError, match=r"did you mean 'dyn8-g64'\?"):
        DynFormat.parse(name)


def test_groups_that_cannot_be_are_refused() -> None:
    with pytest.raises(FormatError, match="dyn format in groups of 48"):
        DynFormat(48)


def test_bits_per_weight() -> None:
    assert DynFormat.parse("dyn8-g128").stored_bytes((512, 1024)) * 8 == 8.125 * 512 * 1024


def test_weights_of_five_decades_keep_their_first_digit() -> None:
    generator = torch.Generator().manual_seed(0)
    W = 10.0 ** (-5 * torch.rand(16, 128, generator=generator))
    W *= torch.rand(16, 128, generator=generator).sub(0.5).sign()
    error = (DynFormat(128).nearest(W).weight() - W).abs() / W.abs()
    assert error.median() < 0.05
    assert error.max() < 0.6
