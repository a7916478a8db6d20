"""DFloat11: a bfloat16 tensor as bytes, its exponents Huffman-coded, the rest as it is.

Paper:   Zhang et al., "70% Size, 100% Accuracy: Lossless LLM Compression for Efficient GPU
         Inference via Dynamic-Length Float", 2025.
Idea:    Sign and mantissa of trained weights are noise; their exponents carry 2.6 of 8 bits.
         Exponents so rare that they would take codes from the others share one code, the escape,
         and follow as plain bytes.

Layout:  first coded exponent, number of them - 1, the escape, their code lengths in 4 bits each;
         bytes - 1 of every lane; the codes; escaped exponents; sign and mantissa of every value.
         Values that no code shrinks: their own bytes, 2 of each.
Shapes:  N values, flat; L = ceil(N / 256) lanes.
Raises:  ValueError for bytes of another tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from blockwright.numerics.huffman import (
    LANE,
    code_lengths,
    count_symbols,
    decode,
    encode,
    encoded_bytes,
)

CHUNK_VALUES = 1 << 22
"""Values in flight: bounds the working memory to a few times 8 MiB."""
RARE_SHARES = (2.0**-10, 2.0**-12, 2.0**-14)
"""Exponents below such a share are tried as escaped ones."""
HEAD = 3
"""Bytes in front of the code lengths."""


@dataclass(frozen=True)
class ExponentCode:
    """Which exponents have a code of their own."""

    lengths: Tensor
    """uint8 [256], 0 = none; of the escape, too."""
    rare: Tensor
    """bool [256]: those that follow the escape as plain bytes."""
    escape: int
    """One of the rare ones; without any, one that does not occur."""


def to_bytes(values: Tensor) -> Tensor:
    """The bytes (uint8, flat) of bfloat16 values; the same values give the same bytes."""
    if not values.numel():
        return torch.empty(0, dtype=torch.uint8, device=values.device)
    exponents, rest = split_parts(values)
    code = best_code(count_symbols(exponents))
    escaped, coded = _escape(exponents, code)
    stream, lane_bytes = encode(coded, code.lengths)
    parts = [_head(code).to(stream.device), lane_bytes, stream, escaped, rest]
    if sum(map(len, parts)) >= 2 * len(rest):
        return values.contiguous().view(-1).view(torch.uint8).clone()
    return torch.cat(parts)


def from_bytes(stored: Tensor, count: int) -> Tensor:
    """Invert ``to_bytes``: ``count`` bfloat16 values, flat."""
    if len(stored) == 2 * count:
        return stored.clone().view(torch.bfloat16)
    if len(stored) < count + HEAD:
        raise ValueError(f"{len(stored)} bytes hold no {count} values")
    lengths, escape, start = _read_head(stored)
    lanes = start - (-count // LANE)
    behind = len(stored) - count
    lane_bytes = stored[start:lanes]
    codes = lanes + int(lane_bytes.to(torch.int64).sum()) + len(lane_bytes)
    exponents = decode(stored[lanes : min(codes, behind)], lane_bytes, lengths, count)
    if codes < behind:
        is_escaped = exponents == escape
        if int(is_escaped.sum()) != behind - codes:
            raise ValueError(f"{behind - codes} escaped exponents are not as many as the codes say")
        exponents.masked_scatter_(is_escaped, stored[codes:behind])
    return join_parts(exponents, stored[behind:])


def best_code(counts: Tensor) -> ExponentCode:
    """The smallest of a few codes: all exponents coded, or those below some share escaped."""
    counts = counts.cpu()
    none = torch.zeros(256, dtype=torch.bool)
    tried = [none, *((counts > 0) & (counts < share * counts.sum()) for share in RARE_SHARES)]
    codes = [_code(counts, rare) for rare in tried if rare is none or int(rare.sum()) > 1]
    return min(codes, key=lambda code: _coded_bytes(counts, code))


def split_parts(values: Tensor) -> tuple[Tensor, Tensor]:
    """Exponents, and sign << 7 | mantissa: uint8, flat; every bit pattern is kept."""
    flat = values.contiguous().view(-1).view(torch.int16)
    exponents = torch.empty(flat.shape, dtype=torch.uint8, device=flat.device)
    rest = torch.empty_like(exponents)
    for start in range(0, len(flat), CHUNK_VALUES):
        some = slice(start, start + CHUNK_VALUES)
        bits = flat[some]
        exponents[some] = bits >> 7 & 255
        rest[some] = bits >> 8 & 128 | bits & 127
    return exponents, rest


def join_parts(exponents: Tensor, rest: Tensor) -> Tensor:
    """Invert ``split_parts``: bfloat16, flat."""
    joined = torch.empty(exponents.shape, dtype=torch.int16, device=exponents.device)
    for start in range(0, len(joined), CHUNK_VALUES):
        some = slice(start, start + CHUNK_VALUES)
        lower = rest[some].to(torch.int16)
        joined[some] = (lower & 128) << 8 | exponents[some].to(torch.int16) << 7 | lower & 127
    return joined.view(torch.bfloat16)


def _code(counts: Tensor, rare: Tensor) -> ExponentCode:
    """Where all exponents occur and none is rare, no code is smaller than the values."""
    marks = torch.nonzero(rare if bool(rare.any()) else counts == 0).view(-1).tolist()
    escape = marks[0] if marks else 0
    coded = torch.where(rare, 0, counts)
    coded[escape] += counts[rare].sum()
    return ExponentCode(code_lengths(coded), rare, escape)


def _coded_bytes(counts: Tensor, code: ExponentCode) -> int:
    """Bytes of the codes, the escaped exponents and the code itself."""
    escaped = int(counts[code.rare].sum())
    lengths = torch.where(code.rare, code.lengths[code.escape], code.lengths)
    return encoded_bytes(counts, lengths) + escaped + len(_head(code))


def _escape(exponents: Tensor, code: ExponentCode) -> tuple[Tensor, Tensor]:
    """The rare exponents, and all exponents with the escape in their places."""
    if not bool(code.rare.any()):
        return exponents[:0], exponents
    is_rare = code.rare.to(exponents.device)[exponents.to(torch.int32)]
    return exponents[is_rare], exponents.masked_fill(is_rare, code.escape)


def _head(code: ExponentCode) -> Tensor:
    used = torch.nonzero(code.lengths).view(-1)
    first, last = int(used[0]), int(used[-1])
    between = torch.nn.functional.pad(code.lengths[first : last + 1], (0, (last - first + 1) % 2))
    head = torch.tensor([first, last - first, code.escape], dtype=torch.uint8)
    return torch.cat([head, between[::2] | between[1::2] << 4])


def _read_head(stored: Tensor) -> tuple[Tensor, int, int]:
    """Code lengths, the escape, and where they end."""
    first, more, escape = stored[:HEAD].tolist()
    end = HEAD + (more + 2) // 2
    pairs = stored[HEAD:end].cpu()
    between = torch.stack([pairs & 15, pairs >> 4], 1).view(-1)[: more + 1]
    lengths = torch.zeros(256, dtype=torch.uint8)
    lengths[first : first + more + 1] = between[: 256 - first]
    return lengths, escape, end
