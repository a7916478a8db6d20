"""Huffman codes of bytes, in lanes that are decoded side by side.

Papers:  Larmore and Hirschberg, "A fast algorithm for optimal length-limited Huffman codes", 1990;
         Zhang et al., "70% Size, 100% Accuracy: Lossless LLM Compression for Efficient GPU
         Inference via Dynamic-Length Float" (DFloat11), 2025, for decoding in parallel.
Idea:    Where a code begins is known only when the one before it was read, so the symbols are cut
         into lanes of 256, each beginning at a byte of its own.  All lanes take one step at a
         time: a step is a handful of vector operations, however many lanes there are.  Codes have
         at most 8 bits, so that a window of 16 bits always holds two whole ones: one lookup gives
         two symbols and how far to move.

Equations -> code
    package-merge   code_lengths     least sum of counts * lengths, lengths <= 8, Kraft sum <= 1
    canonical       canonical_codes  by length, then symbol; first bit of a code lowest
Stored:  a code is its 256 lengths.  A lane is a whole number of bytes, at least 1, at most 256.
Shapes:  N symbols, L = ceil(N / 256) lanes.
Cost:    decoding about 10 vector operations over lanes for every 2 symbols.
Raises:  ValueError for symbols without a code and for streams that do not fit their lanes.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

LIMIT = 8
"""Bits of the longest code."""
LANE = 256
"""Symbols of a lane."""
WINDOW = 2 * LIMIT
CHUNK_LANES = 4096
"""Lanes in flight: bounds the working memory to about 50 MB and keeps it near the cache."""
WORD = 64
"""Bits of a word while encoding: eight codes always fit."""


def count_symbols(symbols: Tensor) -> Tensor:
    """How often each byte occurs, int64 [256]."""
    counts = torch.zeros(256, dtype=torch.int64, device=symbols.device)
    for chunk in torch.split(symbols.view(-1), CHUNK_LANES * LANE):
        counts += torch.bincount(chunk, minlength=256)
    return counts


def code_lengths(counts: Tensor, limit: int = LIMIT) -> Tensor:
    """Lengths (uint8 [256], 0 = does not occur) of the best code with at most ``limit`` bits.

    One symbol alone gets one bit.  Of equally good codes always the same one is taken.
    """
    leaves = sorted((int(count), symbol) for symbol, count in enumerate(counts) if count > 0)
    if len(leaves) > 1 << limit:
        raise ValueError(f"{len(leaves)} symbols have no code of {limit} bits")
    lengths = torch.zeros(256, dtype=torch.uint8)
    if len(leaves) == 1:
        lengths[leaves[0][1]] = 1
    packages: list[tuple[int, list[int]]] = []
    coins = [(count, [symbol]) for count, symbol in leaves]
    for _ in range(limit):
        merged = sorted([*coins, *packages], key=lambda package: package[0])
        pairs = zip(merged[::2], merged[1::2], strict=False)
        packages = [(a + b, [*first, *second]) for (a, first), (b, second) in pairs]
    for _, symbols in packages[: max(len(leaves) - 1, 0)]:
        for symbol in symbols:
            lengths[symbol] += 1
    return lengths


def canonical_codes(lengths: Tensor) -> Tensor:
    """Codes (int64 [256]) of lengths, the first bit lowest."""
    codes = torch.zeros(256, dtype=torch.int64)
    order = sorted((int(length), symbol) for symbol, length in enumerate(lengths) if length > 0)
    code, before = 0, 0
    for length, symbol in order:
        code <<= length - before
        codes[symbol] = int(f"{code:0{length}b}"[::-1], 2)
        code, before = code + 1, length
    return codes


def encoded_bytes(counts: Tensor, lengths: Tensor) -> int:
    """Bytes of the codes alone, before lanes are filled up to whole bytes."""
    return -(-int((counts.cpu() * lengths.to(torch.int64)).sum()) // 8)


def encode(symbols: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The stream (uint8, flat) and every lane's bytes minus one (uint8 [L])."""
    device = symbols.device
    lengths_of = torch.cat([lengths.to(torch.int64), torch.zeros(1, dtype=torch.int64)]).to(device)
    codes_of = torch.cat([canonical_codes(lengths), torch.zeros(1, dtype=torch.int64)]).to(device)
    streams, lane_bytes = [], []
    for chunk in torch.split(symbols.reshape(-1), CHUNK_LANES * LANE):
        missing = -len(chunk) % LANE
        index = torch.nn.functional.pad(chunk.to(torch.int64), (0, missing), value=256)
        bits = lengths_of[index].view(-1, LANE)
        if int((bits == 0).sum()) != missing:
            raise ValueError("a symbol has no code")
        stream, filled = _encode_lanes(codes_of[index].view(-1, LANE), bits)
        streams.append(stream)
        lane_bytes.append((filled - 1).to(torch.uint8))
    empty = torch.empty(0, dtype=torch.uint8, device=device)
    return torch.cat([empty, *streams]), torch.cat([empty, *lane_bytes])


@torch.inference_mode(False)  # threads do not inherit it
def decode(stream: Tensor, lane_bytes: Tensor, lengths: Tensor, count: int) -> Tensor:
    """Invert ``encode``: ``count`` symbols, uint8."""
    lanes = -(-count // LANE)
    ends = torch.cumsum(lane_bytes.to(torch.int64) + 1, 0)
    if len(lane_bytes) != lanes or len(stream) != (int(ends[-1]) if lanes else 0):
        raise ValueError(
            f"{len(stream)} bytes in {len(lane_bytes)} lanes are not {count} coded symbols"
        )
    symbols = torch.empty((lanes, LANE), dtype=torch.uint8, device=stream.device)
    table = pair_table(lengths).to(stream.device)
    starts = ends - (lane_bytes.to(torch.int64) + 1)

    def decode_chunk(some: slice) -> None:
        begin, end = int(starts[some.start]), int(ends[some.stop - 1])
        positions = (starts[some] - begin).to(torch.int32) * 8
        _decode_lanes(_windows(stream[begin:end]), positions, table, symbols[some])

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # torch lets go of the lock
        for _ in threads.map(decode_chunk, _chunks(lanes)):
            pass
    return symbols.view(-1)[:count]


def pair_table(lengths: Tensor) -> Tensor:
    """What 16 bits begin with: int32 [65536], two symbols as they lie in memory, and the bits of
    both << 16.  Windows that no code begins stand for symbol 0 and no bits.
    """
    symbol = torch.zeros(1 << LIMIT, dtype=torch.int32)
    length = torch.zeros(1 << LIMIT, dtype=torch.int32)
    codes = canonical_codes(lengths)
    for each in torch.nonzero(lengths).view(-1).tolist():
        alike = slice(int(codes[each]), None, 1 << int(lengths[each]))
        symbol[alike], length[alike] = each, int(lengths[each])
    window = torch.arange(1 << WINDOW, dtype=torch.int32)
    low = (1 << LIMIT) - 1
    first, second = window & low, (window >> length[window & low]) & low
    both = torch.stack([symbol[first], symbol[second]], 1).to(torch.uint8).view(torch.int16)
    return (both.view(-1).to(torch.int32) & 0xFFFF) | (length[first] + length[second]) << 16


def _chunks(lanes: int) -> Iterator[slice]:
    for start in range(0, lanes, CHUNK_LANES):
        yield slice(start, min(start + CHUNK_LANES, lanes))


def _encode_lanes(codes: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    """Stream and bytes per lane of codes and their lengths, [L, 256]; length 0 = nothing."""
    while codes.shape[1] > LANE // (WORD // LIMIT):  # two, four, eight codes in one word
        codes = codes[:, ::2] | codes[:, 1::2] << bits[:, ::2]
        bits = bits[:, ::2] + bits[:, 1::2]
    filled = (bits.sum(1) + 7) // 8
    starts = 8 * (torch.cumsum(filled, 0) - filled)
    positions = (starts[:, None] + torch.cumsum(bits, 1) - bits).view(-1)
    total, words, shift = int(filled.sum()), codes.reshape(-1), positions % WORD
    joined = torch.zeros(total // 8 + 2, dtype=torch.int64, device=codes.device)
    place = positions // WORD
    joined.index_add_(0, place, words << shift)
    above = (words >> 1 & (1 << WORD - 1) - 1) >> (WORD - 1 - shift)  # zeros move in from the left
    joined.index_add_(0, place + 1, above)
    parts = [(joined >> byte & 255).to(torch.uint8) for byte in range(0, WORD, 8)]
    return torch.stack(parts, 1).view(-1)[:total], filled


def _windows(stream: Tensor) -> Tensor:
    """The 32 bits from every other byte on, int32, with zeros behind the end for the last lane."""
    behind = LANE * LIMIT // 8 + 4
    padded = torch.nn.functional.pad(stream, (0, behind + len(stream) % 2)).to(torch.int32)
    halves = padded[::2] | padded[1::2] << 8
    return halves[:-1] | halves[1:] << 16


def _decode_lanes(windows: Tensor, positions: Tensor, table: Tensor, symbols: Tensor) -> None:
    """Fill ``symbols`` [L, 256] from lanes that begin at bit ``positions`` [L]."""
    lanes, steps = symbols.shape[0], symbols.shape[1] // 2
    found = torch.empty((steps, lanes), dtype=torch.int32, device=symbols.device)
    at, window = torch.empty_like(positions), torch.empty_like(positions)
    # Tensors, because turning a number into one takes longer than the operation.
    to_half, in_half, low, high = positions.new_tensor([4, 15, 0xFFFF, 16])
    for entry in found:
        torch.bitwise_right_shift(positions, to_half, out=at)
        torch.index_select(windows, 0, at, out=window)
        torch.bitwise_and(positions, in_half, out=at)
        window.bitwise_right_shift_(at).bitwise_and_(low)
        torch.index_select(table, 0, window, out=entry)
        torch.bitwise_right_shift(entry, high, out=at)
        positions.add_(at)
    symbols.view(torch.int16).copy_(found.to(torch.int16).t())
