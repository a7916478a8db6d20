"""DFloat11: every bit comes back, from as many bytes as the codes take."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from blockwright.numerics.dfloat11 import (
    best_code,
    from_bytes,
    join_parts,
    split_parts,
    to_bytes,
)
from blockwright.numerics.huffman import LANE, code_lengths, count_symbols, encoded_bytes

PATTERNS = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return (0.02 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).bfloat16()


def comes_back(values: Tensor) -> bool:
    flat = values.contiguous().view(-1)
    back = from_bytes(to_bytes(values), len(flat))
    return torch.equal(back.view(torch.int16), flat.view(torch.int16))


def test_parts_are_the_fields_of_the_number() -> None:
    exponents, rest = split_parts(torch.tensor([[1.0, -2.0], [0.0, -1.5]]).bfloat16())
    assert exponents.tolist() == [127, 128, 0, 127]
    assert rest.tolist() == [0, 128, 0, 128 + 64]
    joined = join_parts(*split_parts(PATTERNS.view(torch.bfloat16)))
    assert torch.equal(joined.view(torch.int16), PATTERNS)


@pytest.mark.parametrize("copies", [0, 4, 40])
def test_every_bit_pattern_comes_back_among_many_and_few(copies: int) -> None:
    values = torch.cat([normal(copies << 16), PATTERNS.view(torch.bfloat16)])
    assert comes_back(values)
    if copies == 40:
        assert len(to_bytes(values)) < 0.72 * 2 * len(values)


@pytest.mark.parametrize("count", [0, 1, 2, 15, 255, 256, 257, 771, 100_000])
def test_tensors_of_every_size_come_back(count: int) -> None:
    assert comes_back(normal(count))


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, float("inf"), float("nan")])
def test_values_that_are_all_alike_take_nine_bits(value: float) -> None:
    values = torch.full((64 * 256,), value).bfloat16()
    assert comes_back(values)
    assert len(to_bytes(values)) == 4 + 64 + 64 * 32 + 64 * 256


def test_bytes_are_those_of_the_codes_and_their_lanes() -> None:
    values = normal(1000)
    counts = count_symbols(split_parts(values)[0])
    lengths = code_lengths(counts)
    used = torch.nonzero(lengths).view(-1)
    lanes = -(-len(values) // LANE)
    head = 3 + -(-(int(used[-1] - used[0]) + 1) // 2)
    least = head + lanes + encoded_bytes(counts, lengths) + len(values)
    assert least <= len(to_bytes(values)) <= least + lanes


def test_few_bits_over_the_entropy_whatever_is_rare() -> None:
    plain, patterns = normal(1 << 18), PATTERNS[:300].view(torch.bfloat16)
    wide = plain * torch.where(torch.arange(len(plain)) % 999 == 0, 1e-30, 1.0).bfloat16()
    for values in (plain, wide, torch.cat([plain, patterns])):
        counts = count_symbols(split_parts(values)[0]).double()
        shares = counts[counts > 0] / counts.sum()
        entropy = float(-(shares * shares.log2()).sum())
        assert 8 * len(to_bytes(values)) / len(values) < 8 + entropy + 0.16


def test_rare_exponents_take_no_codes_from_the_others() -> None:
    counts = torch.ones(256, dtype=torch.int64)
    counts[110:130] = 1 << torch.arange(20)
    code = best_code(counts)
    assert bool(code.rare[code.escape])
    assert not code.rare[122:130].any()
    without = best_code(torch.where(counts > 1, counts, 0))
    assert not without.rare.any() or int(without.rare.sum()) > 1


def test_what_no_code_shrinks_is_stored_as_it_is() -> None:
    drawn = torch.randint(65536, (4096,), generator=torch.Generator().manual_seed(0))
    values = PATTERNS[drawn].view(torch.bfloat16)
    assert len(to_bytes(values)) == 2 * 4096
    assert comes_back(values)


@pytest.mark.parametrize("count", [999, 1001, 5000, 300])
def test_bytes_of_another_size_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=r"bytes|escaped"):
        from_bytes(to_bytes(normal(1000)), count)
