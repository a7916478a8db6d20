"""PyTorch's int4 CPU kernel: codes of up to 8 bits as one or two planes of nibbles.

Idea:    ``_weight_int4pack_mm_for_cpu`` computes sum_j x_j ((nibble_j - 8) scale + zero) per group,
         reading half a byte per weight.  Codes of b = 5 to 8 bits are their high 4 bits and their
         low L = b - 4, so they are two products, with scales 2^L s and s.  The packed layout is
         the machine's own: it is probed once and never leaves the process; ``codes`` gives the
         codes back bit for bit.

Equations -> code
    shift      pack          codes and zero points get a shift that centers their lowest nibble at 8
    1 plane    _scale_zero   (c - z) s = (c - 8) s + [(8 - z) s]
    2 planes   _scale_zero   (c - z) s = (h - 8) 2^L s + (l - 8) s + [(8 2^L + 8 - z) s]
                             the bracket is split over both planes, bf16(b) and bf16(b - bf16(b));
                             in a group of one code h, l by (8 - h) 2^L s, so that the first plane
                             is 0: a group of zeros has scale 1, which would drown the others
    offset m   with_offset   (c - z) s + m, z = 2^(b - 1): one plane: the bracket is 0; two: it is
                             2^(L - 1) s, all in the first; m is the constant of the last, exact
Shapes:  O out features, P = O rounded up to whole tiles, I in features, T tokens, G = I / group.
         plane uint8 [P, I/2], in tiles of R rows; byte [tile, k, j], k an input, j < R/2: two rows.
Cost:    4 bits per weight and plane, and 32 bits per group and plane, resident.
Differs: nothing is trusted: a build without the kernel, or with a layout that does not fit this
         picture, gives ``tile_layout() is None``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

KERNEL_GROUPS = (256, 128, 64, 32)
"""Group sizes of the kernel, largest first."""
CHUNK_WEIGHTS = 1 << 21
"""Weights unpacked at a time where tokens are many: 4 MiB of bf16."""


@dataclass(frozen=True)
class TileLayout:
    """How this machine packs a tile of ``rows`` rows."""

    rows: int
    order: Tensor | None
    """[R]: place (low nibbles, then high) of every row of a tile; None: they stand in order."""


def kernel_group(group_size: int, in_features: int) -> int | None:
    """The kernel's group for a format's (0 = row); None when none divides the inputs."""
    fits = [group for group in KERNEL_GROUPS if in_features % group == 0]
    if group_size:
        return group_size if group_size in fits else None
    return fits[0] if fits else None


def int4_matrix_bytes(shape: tuple[int, int], *, bits: int, group: int) -> int:
    """``nbytes`` of an ``Int4Matrix`` of [O, I], without making it."""
    out_features, in_features = shape
    padded_rows = out_features + -out_features % _known_layout().rows
    plane_bytes = padded_rows * (in_features // 2)
    scale_zero_bytes = padded_rows * (in_features // group) * 2 * torch.bfloat16.itemsize
    return (2 if _low_bits(bits) else 1) * (plane_bytes + scale_zero_bytes)


@dataclass(frozen=True)
class Int4Matrix:
    """A weight [O, I] in this machine's layout."""

    planes: tuple[Tensor, ...]
    """uint8 [P, I/2]: the nibbles; two planes: the high ones first"""
    scale_zero: tuple[Tensor, ...]
    """bf16 [G, P, 2] of every plane, as the kernel reads them"""
    out_features: int
    group: int
    bits: int
    offset: bool = False
    """Whether an offset m is added to (c - z) s, with z = 2^(bits - 1) everywhere."""

    @classmethod
    def with_offset(
        cls, codes_OI: Tensor, scale_OG: Tensor, offset_OG: Tensor, *, bits: int, group: int
    ) -> Int4Matrix:
        """Of (code - 2^(bits - 1)) scale + offset, both bfloat16, in groups of the kernel."""
        center = torch.full_like(scale_OG, 1 << (bits - 1))
        plain = cls.pack(codes_OI, scale_OG, center, bits=bits, group=group)
        kept = slice(0, plain.out_features)
        if len(plain.planes) == 2:
            half = 1 << (_low_bits(bits) - 1)
            plain.scale_zero[0][:, kept, 1] = half * plain.scale_zero[1][:, kept, 0]
        plain.scale_zero[-1][:, kept, 1] = offset_OG.T.to(torch.bfloat16)
        return replace(plain, offset=True)

    @classmethod
    def pack(
        cls, codes_OI: Tensor, scale_OG: Tensor, zero_point_OG: Tensor, *, bits: int, group: int
    ) -> Int4Matrix:
        """From codes of ``bits`` bits (above 4: two planes) in groups that the kernel takes."""
        tile_rows = _known_layout().rows
        padding = -codes_OI.shape[0] % tile_rows
        low, shift = _low_bits(bits), _shift(bits)
        lowest = (codes_OI & ((1 << low) - 1) if low else codes_OI) + shift
        nibbles = (codes_OI >> low, lowest) if low else (lowest,)
        padded_scale = torch.nn.functional.pad(scale_OG.float(), (0, 0, 0, padding), value=1.0)
        padded_zero = torch.nn.functional.pad(zero_point_OG.float() + shift, (0, 0, 0, padding))
        return cls(
            planes=tuple(_pack_plane(plane, tile_rows) for plane in nibbles),
            scale_zero=_scale_zero(padded_scale, padded_zero, _flat(codes_OI, group) >> low, low),
            out_features=codes_OI.shape[0],
            group=group,
            bits=bits,
        )

    @property
    def in_features(self) -> int:
        return 2 * self.planes[0].shape[1]

    @property
    def many_tokens(self) -> int:
        """From this many tokens on, ``dense_product`` is the faster one (measured, AVX-512)."""
        return 72 // len(self.planes)

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (*self.planes, *self.scale_zero))

    def product(self, x: Tensor) -> Tensor:
        """x W^T [..., O] on the kernel; x [..., I] contiguous bf16."""
        multiply = torch.ops.aten._weight_int4pack_mm_for_cpu
        x_TI = x.reshape(-1, self.in_features)
        y_TP: Tensor = multiply(x_TI, self.planes[0], self.group, self.scale_zero[0])
        if len(self.planes) == 2:
            y_TP = y_TP.add_(multiply(x_TI, self.planes[1], self.group, self.scale_zero[1]))
        y_TO = y_TP if y_TP.shape[1] == self.out_features else y_TP[:, : self.out_features]
        return y_TO.reshape(*x.shape[:-1], self.out_features)

    def dense_product(self, x_TI: Tensor) -> Tensor:
        """The same product with the weight unpacked once, in chunks, to the dtype of x."""
        y_TO = x_TI.new_empty((x_TI.shape[0], self.out_features))
        for rows, W_IR in self._transposed_chunks(x_TI.dtype):
            torch.mm(x_TI, W_IR, out=y_TO[:, rows])
        return y_TO

    def dequantize(self) -> Tensor:
        """The weight [O, I], fp32."""
        W_OI = self.planes[0].new_empty((self.out_features, self.in_features), dtype=torch.float32)
        for rows, W_IR in self._transposed_chunks(torch.float32):
            W_OI[rows] = W_IR.t()
        return W_OI

    def codes(self) -> Tensor:
        """The codes [O, I] that were packed, uint8."""
        codes_OI = self.planes[0].new_empty((self.out_features, self.in_features))
        for tiles in self._tile_chunks():
            start = tiles.start * _known_layout().rows
            chunk_IR = self._tile_codes(tiles)[:, : self.out_features - start]
            codes_OI[start : start + chunk_IR.shape[1]] = chunk_IR.t()
        return codes_OI.sub_(_shift(self.bits))

    def rows(self, index: Tensor) -> Tensor:
        """Rows [len(index), I] of the weight, fp32."""
        scale_GN = self.scale_zero[-1][:, index, 0].float()
        codes = self._row_codes(index).view(index.numel(), -1, self.group).float()
        codes.sub_(self._zero_point_GN(index).t().unsqueeze(-1)).mul_(scale_GN.t().unsqueeze(-1))
        if self.offset:
            codes.add_(self.scale_zero[-1][:, index, 1].float().t().unsqueeze(-1))
        return codes.view(index.numel(), -1)

    def scale(self) -> Tensor:
        """bf16 [O, G] (a view): the scales that were packed."""
        return self.scale_zero[-1][:, : self.out_features, 0].t()

    def zero_point(self) -> Tensor:
        """fp32 [O, G]: the zero points that were packed, exactly (they are integers)."""
        return self._zero_point_GN(slice(0, self.out_features)).t().sub(_shift(self.bits))

    def offsets(self) -> Tensor:
        """bf16 [O, G] (a view): the offsets that were packed."""
        return self.scale_zero[-1][:, : self.out_features, 1].t()

    def _zero_point_GN(self, index: slice | Tensor) -> Tensor:
        """Shifted, as the codes of the planes are."""
        if self.offset:
            center = (1 << (self.bits - 1)) + _shift(self.bits)
            return torch.full_like(self.scale_zero[0][:, index, 1], center, dtype=torch.float32)
        zero_GN = self.scale_zero[0][:, index, 1].float()
        for pair in self.scale_zero[1:]:
            zero_GN = zero_GN.add_(pair[:, index, 1])
        scale_GN = self.scale_zero[-1][:, index, 0].float()
        return (_offset(_low_bits(self.bits)) - zero_GN / scale_GN).round_()

    def _row_codes(self, index: Tensor) -> Tensor:
        layout = _known_layout()
        half = layout.rows // 2
        place = index % layout.rows
        if layout.order is not None:
            place = layout.order[place]
        tile, byte = index // layout.rows, place % half
        shift = (place // half * 4).to(torch.uint8).unsqueeze(1)
        codes = index.new_zeros((index.numel(), self.in_features), dtype=torch.uint8)
        for plane in self.planes:
            packed = plane.view(-1, self.in_features, half)[tile, :, byte]
            codes = (codes << _low_bits(self.bits)) + ((packed >> shift) & 15)
        return codes

    def _tile_chunks(self) -> Iterator[slice]:
        tile_rows = _known_layout().rows
        tiles = self.planes[0].shape[0] // tile_rows
        step = max(1, CHUNK_WEIGHTS // (tile_rows * self.in_features))
        return (slice(at, min(at + step, tiles)) for at in range(0, tiles, step))

    def _tile_codes(self, tiles: slice) -> Tensor:
        """Codes uint8 [I, rows] of whole tiles; the layout is k-major, so this is cheap."""
        layout = _known_layout()
        codes = self._tile_nibbles(self.planes[0], tiles)
        for plane in self.planes[1:]:
            codes = codes.mul_(1 << _low_bits(self.bits)).add_(self._tile_nibbles(plane, tiles))
        codes = codes.view(self.in_features, -1, layout.rows)
        if layout.order is not None:
            codes = codes[..., layout.order]
        return codes.reshape(self.in_features, -1)

    def _tile_nibbles(self, plane: Tensor, tiles: slice) -> Tensor:
        """uint8 [I, tiles, 2, R/2]: the low nibbles, then the high ones."""
        packed = plane.view(-1, self.in_features, _known_layout().rows // 2)[tiles]
        nibbles = plane.new_empty((self.in_features, packed.shape[0], 2, packed.shape[2]))
        nibbles[:, :, 0] = (packed & 15).transpose(0, 1)
        nibbles[:, :, 1] = (packed >> 4).transpose(0, 1)
        return nibbles

    def _transposed_chunks(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Row slices with W^T [I, rows] of them.  Every weight is rounded once, to ``dtype``."""
        tile_rows = _known_layout().rows
        once = dtype == torch.bfloat16 and not self.offset  # a code times a scale, rounded once
        exact = torch.bfloat16 if once else torch.float32
        scale_GP = self.scale_zero[-1][..., 0].contiguous().to(exact)  # a strided one is 30x slower
        zero_point_GP = self._zero_point_GN(slice(None)).to(exact)
        offset_GP = self.scale_zero[-1][..., 1].contiguous().to(exact) if self.offset else None
        for tiles in self._tile_chunks():
            rows = slice(tiles.start * tile_rows, tiles.stop * tile_rows)
            W_IR = self._tile_codes(tiles).to(exact)
            grouped = W_IR.view(-1, self.group, W_IR.shape[1])
            grouped.sub_(zero_point_GP[:, None, rows]).mul_(scale_GP[:, None, rows])
            if offset_GP is not None:
                grouped.add_(offset_GP[:, None, rows])
            kept = slice(rows.start, min(rows.stop, self.out_features))
            yield kept, W_IR[:, : kept.stop - kept.start].to(dtype)


@cache
def tile_layout() -> TileLayout | None:
    """This machine's layout, or None where the kernel is missing or packs in another way."""
    try:
        source_low, source_high = _probe()
    except (AttributeError, NotImplementedError, RuntimeError):
        return None
    for rows in (16, 32, 64, 128):
        layout = _fitted(rows, source_low, source_high)
        if layout is not None:
            return layout if _multiplies() else None
    return None


PROBE_ROWS, PROBE_INPUTS = 256, 32


def _probe() -> tuple[Tensor, Tensor]:
    """For every packed byte the element, row * inputs + input, in its low and in its high nibble.

    The base-16 digits of the elements' numbers are packed and read back.
    """
    element = torch.arange(PROBE_ROWS * PROBE_INPUTS).view(PROBE_ROWS, PROBE_INPUTS)
    low = torch.zeros(element.numel() // 2, dtype=torch.int64)
    high = torch.zeros_like(low)
    for digit in range(4):
        packed = _convert(((element >> (4 * digit)) & 15).to(torch.uint8)).reshape(-1).long()
        low |= (packed & 15) << (4 * digit)
        high |= (packed >> 4) << (4 * digit)
    return low, high


def _fitted(rows: int, source_low: Tensor, source_high: Tensor) -> TileLayout | None:
    """The layout of tiles of ``rows`` rows, if the probe packs every tile and input alike."""
    shape = (PROBE_ROWS // rows, PROBE_INPUTS, rows // 2)
    source = torch.cat([source_low.view(shape), source_high.view(shape)], dim=-1)
    tile = torch.arange(shape[0]).view(-1, 1, 1)
    row_in_tile = source // PROBE_INPUTS - tile * rows
    inputs = torch.arange(PROBE_INPUTS).view(1, -1, 1)
    rows_at_place = row_in_tile[0, 0]
    alike = bool((row_in_tile == rows_at_place).all() and (source % PROBE_INPUTS == inputs).all())
    if not alike or not torch.equal(rows_at_place.sort().values, torch.arange(rows)):
        return None
    order = rows_at_place.argsort()
    in_order = torch.equal(order, torch.arange(rows))
    return TileLayout(rows, None if in_order else order)


def _multiplies() -> bool:
    """Whether the kernel gives back codes - 8 for an identity input."""
    codes = (
        torch.arange(PROBE_ROWS * PROBE_INPUTS).view(PROBE_ROWS, PROBE_INPUTS) * 7 % 31 % 16
    ).to(torch.uint8)
    scale_zero = (
        torch.tensor([1.0, 0.0], dtype=torch.bfloat16).expand(1, PROBE_ROWS, 2).contiguous()
    )
    identity = torch.eye(PROBE_INPUTS, dtype=torch.bfloat16)
    multiply = torch.ops.aten._weight_int4pack_mm_for_cpu
    return torch.equal(
        multiply(identity, _convert(codes), PROBE_INPUTS, scale_zero), (codes.t() - 8.0).bfloat16()
    )


def _known_layout() -> TileLayout:
    layout = tile_layout()
    if layout is None:
        raise RuntimeError("this build of PyTorch has no int4 CPU kernel in a known layout")
    return layout


def _convert(codes: Tensor) -> Tensor:
    packed: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32), 1)
    return packed


def _pack_plane(nibbles_OI: Tensor, tile_rows: int) -> Tensor:
    """uint8 [P, I/2], rows padded with nibble 0; converted in chunks (the kernel wants int32)."""
    out_features, in_features = nibbles_OI.shape
    padded_rows = out_features + -out_features % tile_rows
    plane = nibbles_OI.new_empty((padded_rows, in_features // 2))
    step = max(1, CHUNK_WEIGHTS // (tile_rows * in_features)) * tile_rows
    for start in range(0, padded_rows, step):
        chunk = nibbles_OI[start : start + step]
        missing = min(step, padded_rows - start) - chunk.shape[0]
        plane[start : start + step] = _convert(torch.nn.functional.pad(chunk, (0, 0, 0, missing)))
    return plane


def _low_bits(bits: int) -> int:
    """L: bits of a code in the second plane; 0 = there is none."""
    return max(bits - 4, 0)


def _shift(bits: int) -> int:
    """Centers the lowest nibble at 8, so that the kernel's constant is small and rounds little."""
    return 8 - (1 << ((bits - 4 if bits > 4 else bits) - 1))


def _offset(low_bits: int) -> int:
    """What the kernel subtracts from a shifted code in all."""
    return 8 * (1 << low_bits) + 8 if low_bits else 8


def _flat(codes_OI: Tensor, group: int) -> Tensor:
    """int32 [O, G]: the code of groups that have one only; -1 for the others."""
    low, high = codes_OI.view(len(codes_OI), -1, group).aminmax(dim=-1)
    return torch.where(low == high, low.int(), -1)


def _scale_zero(
    scale_PG: Tensor, zero_point_PG: Tensor, flat_OG: Tensor, low_bits: int
) -> tuple[Tensor, ...]:
    """bf16 [G, P, 2] per plane, of shifted zero points.

    ``flat_OG``: the high nibble of groups of one code; negative for the others.
    """
    zero = (_offset(low_bits) - zero_point_PG) * scale_PG
    parts = [(scale_PG, zero)]
    if low_bits:
        step = 1 << low_bits
        first = zero.to(torch.bfloat16).float()
        kept = first[: len(flat_OG)]  # the rest is padding
        centered = (8 - flat_OG) * step * scale_PG[: len(flat_OG)]
        kept.copy_(torch.where(flat_OG < 0, kept, centered))
        parts = [(scale_PG * step, first), (scale_PG, zero - first)]
    return tuple(
        torch.stack([s.to(torch.bfloat16), z.to(torch.bfloat16)], dim=-1)
        .transpose(0, 1)
        .contiguous()
        for s, z in parts
    )
