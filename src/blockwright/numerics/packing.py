"""Dense bit packing: 8 codes of ``bits`` bits become ``bits`` bytes, for 1 to 8 bits.

Paper:   "Tilus: A Virtual Machine for Arbitrary Low-Precision GPGPU Computation in LLM Serving",
         2025 (the packing only).
Idea:    word = sum_k code_k << (bits * k), k = 0..7; the low ``bits`` bytes of it, least first.
         No width is special, nothing is wasted, and the bytes are the same on every machine.

Shapes:  O rows, I codes per row, N = ceil(I / 8) words per row (rows are padded with code 0).
Units:   bytes; a packed matrix is flat, O * N * bits of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_WORDS = 1 << 18
"""Words (8 bytes) in flight: bounds the working memory to a few times 2 MiB."""


def packed_bytes(bits: int, out_features: int, in_features: int) -> int:
    """Bytes of a packed [O, I] matrix."""
    return out_features * -(-in_features // 8) * bits


def pack_codes(codes_OI: Tensor, bits: int) -> Tensor:
    """Pack uint8 codes below ``2**bits``; flat uint8 [O * ceil(I/8) * bits]."""
    out_features, in_features = codes_OI.shape
    words = -(-in_features // 8)
    packed = codes_OI.new_empty((out_features, words, bits), dtype=torch.uint8)
    for rows in _row_chunks(out_features, words):
        chunk = torch.nn.functional.pad(codes_OI[rows], (0, words * 8 - in_features))
        packed[rows] = _to_bytes(chunk.view(-1, words, 8), bits)
    return packed.view(-1)


def unpack_codes(packed: Tensor, bits: int, out_features: int, in_features: int) -> Tensor:
    """Invert ``pack_codes``: codes uint8 [O, I].  Raises ``ValueError`` on a wrong size."""
    words = -(-in_features // 8)
    if packed.numel() != out_features * words * bits:
        raise ValueError(
            f"{packed.numel()} bytes are not {out_features} x {in_features} codes of {bits} bits"
        )
    if bits == 8:
        return packed.view(out_features, -1)[:, :in_features].clone()
    packed_rows = packed.view(out_features, words, bits)
    codes = packed.new_empty((out_features, in_features))
    for rows in _row_chunks(out_features, words):
        chunk = _from_bytes(packed_rows[rows], bits)
        codes[rows] = chunk.view(-1, words * 8)[:, :in_features]
    return codes


def _row_chunks(out_features: int, words: int) -> list[slice]:
    step = max(1, CHUNK_WORDS // max(words, 1))
    return [slice(start, start + step) for start in range(0, out_features, step)]


def _to_bytes(codes: Tensor, bits: int) -> Tensor:
    """[..., 8] codes -> [..., bits] bytes."""
    if 8 % bits == 0:  # whole codes in every byte
        packed = torch.zeros_like(codes[..., :bits])
        for position in range(8 // bits):
            packed |= codes[..., position :: 8 // bits] << (bits * position)
        return packed
    word = torch.zeros(codes.shape[:-1], dtype=torch.int64, device=codes.device)
    for position in range(8):
        word |= codes[..., position].to(torch.int64) << (bits * position)
    return torch.stack([(word >> (8 * byte)) & 0xFF for byte in range(bits)], dim=-1).to(
        torch.uint8
    )


def _from_bytes(chunk: Tensor, bits: int) -> Tensor:
    """[..., bits] bytes -> [..., 8] codes."""
    mask = (1 << bits) - 1
    if 8 % bits == 0:
        whole = [(chunk >> (bits * position)) & mask for position in range(8 // bits)]
        return torch.stack(whole, dim=-1).flatten(-2)
    word = torch.zeros(chunk.shape[:-1], dtype=torch.int64, device=chunk.device)
    for byte in range(bits):
        word |= chunk[..., byte].to(torch.int64) << (8 * byte)
    codes = [((word >> (bits * position)) & mask).to(torch.uint8) for position in range(8)]
    return torch.stack(codes, dim=-1)
