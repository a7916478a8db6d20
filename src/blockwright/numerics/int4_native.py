"""The native int4 kernel (``int4_avx512.cpp``): codes of up to 8 bits in planes of 4 and 2 bits.

Idea:    A weight is read once per 8 tokens at the speed of the memory: fields are looked up in a
         table of bfloat16 values inside a register, multiplied with bfloat16 inputs, and summed in
         fp32; a group's scale and zero point come to its sum, not to its weights.

Equations -> code
    product    y = sum_g s_g (sum_k (c_k - m) x_k + (m - z_g) sum_k x_k),  m = 2^(bits - 1)
    offset     y = sum_g s_g sum_k (c_k - m) x_k + a_g sum_k x_k
    2 planes   c - m = (h - 8) 2^L + l, L = bits - 4: both are exact in bfloat16 and share a sum
Shapes:  O out features, I in features, T tokens, G = I / group, tiles of 32 rows, S = I / 16 steps.
         Planes: 2 bits for codes of 1 and 2; 4 for 3 and 4; 4 and 2 for 5 and 6; 4 and 4 above.
         word: 32 / plane's bits inputs of a row; its field i of half p is input 2 i + p.
Cost:    the planes' bits per weight, and 32 bits per group, resident.
Differs: y alone is rounded; PyTorch's kernel also rounds (8 - z) s, and two planes one by one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from blockwright.numerics import int4_library as library
from blockwright.numerics.int4_library import STEP, TILE, Int4Kernel, Int4Weight, plane_bits

CHUNK_WEIGHTS = 1 << 21
"""Weights packed or unpacked at a time."""


def build_native_int4() -> str:
    """Compile; returns the library's path.  Raises ``KernelError`` in one line."""
    return library.build_native_int4(_multiplies)


def native_int4_bytes(shape: tuple[int, int], *, bits: int, group: int) -> int:
    """``nbytes`` of a ``NativeInt4Matrix`` of [O, I], without making it."""
    padded = shape[0] + -shape[0] % TILE
    return padded * (shape[1] // 8 * sum(plane_bits(bits)) + shape[1] // group * 4)


@dataclass(frozen=True)
class NativeInt4Matrix:
    """A weight [O, I] in the kernel's layout."""

    words: Tensor
    """int32 [tiles, S, words of a step, 32]"""
    scale_zero: Tensor
    """bf16 [tiles, G, 2, 32]: s, then m - z or the offset"""
    out_features: int
    group: int
    bits: int
    offset: bool = False

    @classmethod
    def pack(
        cls, codes_OI: Tensor, scale_OG: Tensor, zero_point_OG: Tensor, *, bits: int, group: int
    ) -> NativeInt4Matrix:
        """From codes of ``bits`` bits, groups a multiple of 16 inputs."""
        centered = (1 << (bits - 1)) - zero_point_OG.float()
        pairs = torch.stack([scale_OG.to(torch.bfloat16), centered.to(torch.bfloat16)], dim=1)
        padded = torch.nn.functional.pad(pairs, (0, 0, 0, 0, 0, -len(pairs) % TILE))
        tiles = padded.view(-1, TILE, 2, padded.shape[-1])
        return cls(
            words=_pack_words(codes_OI, bits),
            scale_zero=tiles.permute(0, 3, 2, 1).contiguous(),
            out_features=codes_OI.shape[0],
            group=group,
            bits=bits,
        )

    @classmethod
    def with_offset(
        cls, codes_OI: Tensor, scale_OG: Tensor, offset_OG: Tensor, *, bits: int, group: int
    ) -> NativeInt4Matrix:
        """Of (code - 2^(bits - 1)) scale + offset, both bfloat16."""
        center = (1 << (bits - 1)) - offset_OG.to(torch.bfloat16).float()
        plain = cls.pack(codes_OI, scale_OG, center, bits=bits, group=group)
        padded = torch.nn.functional.pad(
            offset_OG.to(torch.bfloat16), (0, 0, 0, -len(offset_OG) % TILE)
        )
        plain.scale_zero[:, :, 1] = padded.view(-1, TILE, padded.shape[1]).transpose(1, 2)
        return replace(plain, offset=True)

    @property
    def in_features(self) -> int:
        return STEP * self.words.shape[1]

    @property
    def many_tokens(self) -> int:
        """From this many tokens on, ``dense_product`` is the faster one (measured, AVX-512)."""
        return 512 if len(plane_bits(self.bits)) == 1 else 48

    @property
    def nbytes(self) -> int:
        return self.words.nbytes + self.scale_zero.nbytes

    @cached_property
    def weight(self) -> Int4Weight:
        """For the library."""
        return Int4Weight.of(
            self.words, self.scale_zero, self.out_features, self.group, self.bits, self.offset
        )

    @cached_property
    def _address(self) -> int:
        return ctypes.addressof(self.weight)

    def __getstate__(self) -> dict[str, Any]:
        """What is copied: a copy has tensors, and so addresses, of its own."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def product(self, x: Tensor) -> Tensor:
        """x W^T [..., O] on the kernel; x [..., I] contiguous bf16."""
        if torch.compiler.is_compiling():
            operator = torch.ops.blockwright.int4_product
            given = self.words, self.scale_zero, self.out_features, self.group, self.bits
            compiled: Tensor = operator(x, *given, self.offset)
            return compiled
        tokens = x.numel() // x.shape[-1]
        return library.kernel_in_use().product(x, self._address, self.out_features, tokens)

    def dense_product(self, x_TI: Tensor) -> Tensor:
        """The same product with the weight unpacked once, in chunks, to the dtype of x."""
        y_TO = x_TI.new_empty((x_TI.shape[0], self.out_features))
        for rows, W_IR in self._transposed_chunks(x_TI.dtype):
            torch.mm(x_TI, W_IR, out=y_TO[:, rows])
        return y_TO

    def dequantize(self) -> Tensor:
        """The weight [O, I], fp32."""
        chunks = [
            self._decoded(self._tile_codes(t), self._beside(t, 0), self._beside(t, 1))
            for t in self._tile_chunks()
        ]
        return torch.cat(chunks)[: self.out_features]

    def codes(self) -> Tensor:
        """The codes [O, I] that were packed, uint8."""
        chunks = [self._tile_codes(tiles) for tiles in self._tile_chunks()]
        return torch.cat(chunks)[: self.out_features]

    def rows(self, index: Tensor) -> Tensor:
        """Rows [len(index), I] of the weight, fp32."""
        tile, row = index // TILE, index % TILE
        codes = _unpack_words(self.words[tile, :, :, row], self.bits)
        scale, zero = self.scale_zero[tile, :, :, row].unbind(-1)
        return self._decoded(codes, scale, zero)

    def scale(self) -> Tensor:
        """bf16 [O, G]: the scales that were packed."""
        return self._beside(slice(None), 0)[: self.out_features]

    def zero_point(self) -> Tensor:
        """fp32 [O, G]: the zero points that were packed, exactly (they are integers)."""
        centered = self._beside(slice(None), 1)[: self.out_features].float()
        return torch.zeros_like(centered) if self.offset else (1 << (self.bits - 1)) - centered

    def offsets(self) -> Tensor:
        """bf16 [O, G]: the offsets that were packed."""
        return self._beside(slice(None), 1)[: self.out_features]

    def _beside(self, tiles: slice, which: int) -> Tensor:
        """bf16 [rows, G]"""
        chosen = self.scale_zero[tiles, :, which].transpose(1, 2)
        return chosen.reshape(-1, chosen.shape[-1])

    def _tile_chunks(self) -> Iterator[slice]:
        step = max(1, CHUNK_WEIGHTS // (TILE * self.in_features))
        tiles = len(self.words)
        return (slice(at, min(at + step, tiles)) for at in range(0, tiles, step))

    def _tile_codes(self, tiles: slice) -> Tensor:
        """uint8 [rows, I] of whole tiles."""
        return _unpack_words(self.words[tiles].permute(0, 3, 1, 2).flatten(0, 1), self.bits)

    def _transposed_chunks(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Row slices with W^T [I, rows] of them."""
        known = dtype if dtype == torch.bfloat16 else torch.float32
        unpacked = library.kernel_in_use().unpacked
        for tiles in self._tile_chunks():
            rows = slice(tiles.start * TILE, min(tiles.stop * TILE, self.out_features))
            W_IR = unpacked(self.weight, tiles, known)
            yield rows, W_IR[:, : rows.stop - rows.start].to(dtype)

    def _decoded(self, codes_RI: Tensor, scale_RG: Tensor, zero_RG: Tensor) -> Tensor:
        """fp32 [R, I]"""
        W_RGJ = codes_RI.float().view(len(codes_RI), -1, self.group).sub_(1 << (self.bits - 1))
        scale, zero = (beside.float().unsqueeze(-1) for beside in (scale_RG, zero_RG))
        W_RGJ = W_RGJ.mul_(scale).add_(zero) if self.offset else W_RGJ.add_(zero).mul_(scale)
        return W_RGJ.view(codes_RI.shape)


def _pack_words(codes_OI: Tensor, bits: int) -> Tensor:
    """int32 [tiles, S, words, 32], rows padded with zeros."""
    out_features, in_features = codes_OI.shape
    planes, tiles = plane_bits(bits), -(-out_features // TILE)
    steps = in_features // STEP
    words = torch.empty((tiles, steps, sum(planes) * STEP // 32, TILE), dtype=torch.int32)
    chunk_tiles = max(1, CHUNK_WEIGHTS // (TILE * in_features))
    for at in range(0, tiles, chunk_tiles):
        chunk = codes_OI[at * TILE : (at + chunk_tiles) * TILE]
        chunk = torch.nn.functional.pad(chunk, (0, 0, 0, -len(chunk) % TILE))
        fields = (chunk >> (bits - 4), chunk & ((1 << (bits - 4)) - 1)) if bits > 4 else (chunk,)
        packed = [
            _packed(field, plane).view(len(chunk) // TILE, TILE, steps, -1)
            for field, plane in zip(fields, planes, strict=True)
        ]
        words[at : at + chunk_tiles] = torch.cat(packed, -1).permute(0, 2, 3, 1)
    return words


def _packed(fields_RI: Tensor, plane: int) -> Tensor:
    """int32 [R, I plane / 32]: the words of one plane."""
    of_byte = fields_RI.view(len(fields_RI), -1, 2, 8 // plane, 2).unbind(-2)  # [R, words, b, p]
    packed = of_byte[0]
    for i, field in enumerate(of_byte[1:], 1):
        packed = packed | (field << (plane * i))
    return packed.mT.reshape(len(fields_RI), -1).view(torch.int32)


def _unpack_words(words_RSW: Tensor, bits: int) -> Tensor:
    """uint8 [R, I]: the codes."""
    planes = plane_bits(bits)
    each = words_RSW.split([plane * STEP // 32 for plane in planes], dim=-1)
    high, *low = (_unpacked(*pair) for pair in zip(each, planes, strict=True))
    return (high << (bits - 4)) + low[0] if low else high


def _unpacked(words_RSW: Tensor, plane: int) -> Tensor:
    """uint8 [R, I]: the fields of one plane."""
    rows, steps, words = words_RSW.shape
    packed = words_RSW.contiguous().view(torch.uint8).view(rows, steps * words, 2, 2).mT  # [b, p]
    shifts = range(0, 8, plane)
    fields = torch.stack([packed >> shift for shift in shifts], dim=-2) & ((1 << plane) - 1)
    return fields.reshape(rows, steps * STEP)


def _multiplies(kernel: Int4Kernel) -> bool:
    """Whether a fresh library gives back the weight, multiplied by an identity and unpacked."""
    draw = torch.Generator().manual_seed(0)
    for bits in (2, 3, 4, 6, 8):
        codes = torch.randint(1 << bits, (40, 64), generator=draw, dtype=torch.uint8)
        zero = torch.randint(1 << bits, (40, 2), generator=draw).float()
        scale = 2.0 ** torch.randint(-3, 3, (40, 2), generator=draw)
        m = NativeInt4Matrix.pack(codes, scale, zero, bits=bits, group=32)
        eye, W_OI = torch.eye(64, dtype=torch.bfloat16), m.dequantize()
        y = kernel.product(eye, ctypes.addressof(m.weight), 40, len(eye))
        rows = slice(0, len(m.words))
        W_IO = kernel.unpacked(m.weight, rows, torch.float32)
        if not (torch.equal(y, W_OI.t().bfloat16()) and torch.equal(W_IO[:, :40], W_OI.t())):
            return False
    return True
