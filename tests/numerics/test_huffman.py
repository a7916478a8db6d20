"""Huffman codes: best under the limit, and every stream gives its symbols back."""

from __future__ import annotations

import heapq
from itertools import product

import pytest
import torch
from torch import Tensor

from blockwright.numerics.huffman import (
    LANE,
    LIMIT,
    canonical_codes,
    code_lengths,
    count_symbols,
    decode,
    encode,
    encoded_bytes,
    pair_table,
)


def counts_of(found: list[int]) -> Tensor:
    counts = torch.zeros(256, dtype=torch.int64)
    counts[: len(found)] = torch.tensor(found)
    return counts


def cost(counts: Tensor, lengths: Tensor) -> int:
    return int((counts * lengths.to(torch.int64)).sum())


def huffman_cost(counts: list[int]) -> int:
    """Of the best code of any length: the sum of all merged counts."""
    heap, total = sorted(counts), 0
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        total += both
        heapq.heappush(heap, both)
    return total


def geometric(count: int, seed: int = 0) -> Tensor:
    """Symbols of halving frequency, as exponents of weights are."""
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    return (120 - (-torch.log2(uniform)).floor().clamp(max=40)).to(torch.uint8)


def read_plainly(stream: Tensor, lane_bytes: Tensor, lengths: Tensor, count: int) -> list[int]:
    """The reference: bit by bit, lane by lane."""
    codes, symbols = canonical_codes(lengths), list[int]()
    known = {(int(lengths[s]), int(codes[s])): s for s in range(256) if lengths[s]}
    bits = [byte >> bit & 1 for byte in stream.tolist() for bit in range(8)]
    start = 0
    for held in lane_bytes.tolist():
        at, end = 8 * start, min(len(symbols) + LANE, count)
        while len(symbols) < end:
            length, code = 0, 0
            while (length, code) not in known:
                code |= bits[at] << length
                at, length = at + 1, length + 1
            symbols.append(known[length, code])
        start += held + 1
    return symbols


@pytest.mark.parametrize(
    "counts", [[1, 1], [5, 1, 1, 1], [8, 4, 2, 1, 1], [3, 3, 3], list(range(20, 60))]
)
def test_without_need_of_the_limit_it_is_huffmans_code(counts: list[int]) -> None:
    lengths = code_lengths(counts_of(counts))
    assert cost(counts_of(counts), lengths) == huffman_cost(counts)


@pytest.mark.parametrize("limit", [3, 4])
@pytest.mark.parametrize("counts", [[1, 1, 2, 3, 5, 8], [1, 2, 4, 8, 16], [1, 1, 1, 1, 1, 50]])
def test_under_the_limit_no_code_is_better(counts: list[int], limit: int) -> None:
    possible = [
        lengths
        for lengths in product(range(1, limit + 1), repeat=len(counts))
        if sum(2.0**-length for length in lengths) <= 1
    ]
    best = min(sum(c * n for c, n in zip(counts, lengths, strict=True)) for lengths in possible)
    assert cost(counts_of(counts), code_lengths(counts_of(counts), limit)) == best


def test_more_symbols_than_codes_are_refused() -> None:
    with pytest.raises(ValueError, match="5 symbols have no code of 2 bits"):
        code_lengths(counts_of([1] * 5), 2)


@pytest.mark.parametrize("seed", range(3))
def test_codes_are_prefix_free_and_fill_the_space(seed: int) -> None:
    lengths = code_lengths(count_symbols(geometric(5000, seed)))
    codes = canonical_codes(lengths)
    used = torch.nonzero(lengths).view(-1).tolist()
    assert sum(2.0 ** -int(lengths[s]) for s in used) == 1
    assert int(lengths.max()) <= LIMIT
    for first, second in product(used, used):
        shorter = (1 << int(lengths[first])) - 1
        if first != second and lengths[first] <= lengths[second]:
            assert int(codes[first]) != int(codes[second]) & shorter


@pytest.mark.parametrize("count", [0, 1, 2, 255, 256, 257, 3 * LANE + 7])
def test_streams_are_those_of_a_plain_reader(count: int) -> None:
    symbols = geometric(count)
    lengths = code_lengths(count_symbols(symbols))
    stream, lane_bytes = encode(symbols, lengths)
    assert read_plainly(stream, lane_bytes, lengths, count) == symbols.tolist()
    assert torch.equal(decode(stream, lane_bytes, lengths, count), symbols)
    assert len(stream) >= encoded_bytes(count_symbols(symbols), lengths)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kinds", [1, 2, 3, 17, 256])
def test_all_alphabets_round_trip(kinds: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    alphabet = torch.randperm(256, generator=generator)[:kinds]
    weights = torch.rand(kinds, generator=generator) ** 6
    drawn = torch.multinomial(weights + 1e-6, 20_000, replacement=True, generator=generator)
    symbols = alphabet[drawn].to(torch.uint8)
    lengths = code_lengths(count_symbols(symbols))
    assert torch.equal(decode(*encode(symbols, lengths), lengths, len(symbols)), symbols)


def test_lanes_of_only_the_longest_codes_fit_their_byte() -> None:
    rare = torch.arange(128, 256, dtype=torch.uint8).repeat(2)
    symbols = torch.cat([torch.zeros(50 * LANE, dtype=torch.uint8), rare])
    lengths = code_lengths(count_symbols(symbols))
    assert set(lengths[128:].tolist()) == {LIMIT}
    stream, lane_bytes = encode(symbols, lengths)
    assert lane_bytes[-1] == 255
    assert torch.equal(decode(stream, lane_bytes, lengths, len(symbols)), symbols)


def test_a_symbol_without_a_code_is_refused() -> None:
    lengths = code_lengths(counts_of([3, 2, 1]))
    with pytest.raises(ValueError, match="no code"):
        encode(torch.tensor([0, 1, 9], dtype=torch.uint8), lengths)


def test_streams_of_another_size_are_refused() -> None:
    symbols = geometric(1000)
    lengths = code_lengths(count_symbols(symbols))
    stream, lane_bytes = encode(symbols, lengths)
    for args in ((stream[:-1], lane_bytes, 1000), (stream, lane_bytes[1:], 1000)):
        with pytest.raises(ValueError, match="are not 1000 coded symbols"):
            decode(args[0], args[1], lengths, args[2])


def test_every_window_gives_two_symbols() -> None:
    lengths = code_lengths(count_symbols(geometric(5000)))
    moves = pair_table(lengths) >> 16
    assert int(moves.min()) >= 2
    assert int(moves.max()) <= 2 * LIMIT
