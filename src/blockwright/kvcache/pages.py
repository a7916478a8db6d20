"""Quantized pages of keys or values: fixed numbers of tokens, packed once and read many times.

Shapes:  B rows, H KV heads, P pages, G tokens in a page, D channels, N channels in a group.
         Every stored tensor is [B, H, P, ...] (the order of channels: [B, H, D]), so that rows and
         pages are picked alike in all of them.

    keys per channel   groups [B, H, P, D, G]          one range for a channel over a page
    per token          groups [B, H, P, G, D / N, N]   one range for N channels of one token
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from blockwright.errors import ModelError
from blockwright.numerics.block_floating_point import (
    encode,
    fit_exponents,
    order_by_norm,
    step_sizes,
)
from blockwright.numerics.minmax import decode_minmax, encode_minmax
from blockwright.numerics.packing import pack_codes, unpack_codes
from blockwright.types import CacheFormat, KeyGroups

CHUNK_ELEMENTS = 1 << 18
"""Numbers coded at a time: bounds the working memory to about 5 MB."""
PAGE_AXIS = 2


class Pages(ABC):
    """Pages of one block's keys, or of its values."""

    def __init__(self, format: CacheFormat, like_BHTD: Tensor, *, keys: bool) -> None:
        """``like_BHTD`` gives shape and dtype."""
        self.format, self.dtype = format, like_BHTD.dtype
        self.channels = like_BHTD.shape[-1]
        self.per_channel = keys and format.keys is KeyGroups.CHANNEL
        self.group_size = format.group_of(self.channels)
        self._sorted = keys and format.sort and not self.per_channel
        self.parts: tuple[Tensor, ...] = ()
        """Packed codes, uint8 [B, H, P, bytes], and what scales them."""
        self.order_BHD: Tensor | None = None
        """int16; the channels by descending norm in the first page."""

    @property
    def count(self) -> int:
        """Pages held."""
        return self.parts[0].shape[PAGE_AXIS] if self.parts else 0

    @property
    def tokens(self) -> int:
        """Tokens held."""
        return self.count * self.format.page

    def held(self) -> list[Tensor]:
        """Everything stored."""
        return [*self.parts, *([] if self.order_BHD is None else [self.order_BHD])]

    def append(self, states_BHTD: Tensor) -> None:
        """Quantize whole pages of tokens; ``ModelError`` where their range is not finite."""
        low, high = states_BHTD.aminmax()
        if not torch.isfinite(high.float() - low.float()):
            raise ModelError("keys or values of the KV cache are not finite; leave --kv out")
        paged = states_BHTD.unflatten(2, (-1, self.format.page))
        if self._sorted and self.order_BHD is None:
            norms = paged[:, :, 0].float().square().sum(-2)
            self.order_BHD = order_by_norm(norms).to(torch.int16)
        packed = [self._pack(some) for some in paged.split(self._pages_at_once(paged), PAGE_AXIS)]
        grown = zip(*([self.parts] if self.parts else []), *packed, strict=True)
        self.parts = tuple(torch.cat(tensors, PAGE_AXIS) for tensors in grown)

    def read_into(self, states_BHTD: Tensor) -> None:
        """Write all tokens held to the front of ``states_BHTD``."""
        if not self.count:
            return
        target = states_BHTD[:, :, : self.tokens].unflatten(2, (-1, self.format.page))
        step = self._pages_at_once(target)
        for start in range(0, self.count, step):
            parts = [part[:, :, start : start + step] for part in self.parts]
            target[:, :, start : start + step] = self._unpack(parts)

    def keep(self, pages: int) -> None:
        """Forget all but the first pages."""
        self.parts = tuple(part[:, :, :pages].clone() for part in self.parts) if pages else ()
        self.order_BHD = self.order_BHD if pages else None

    def forget(self, pages: int) -> None:
        """Forget the first pages; the order of channels stays."""
        self.parts = tuple(part[:, :, pages:].clone() for part in self.parts)

    def pick(self, rows: Callable[[Tensor], Tensor]) -> None:
        """Apply a choice of rows to everything stored."""
        self.parts = tuple(map(rows, self.parts))
        self.order_BHD = None if self.order_BHD is None else rows(self.order_BHD)

    @abstractmethod
    def _encode(self, groups: Tensor) -> tuple[Tensor, ...]:
        """Codes uint8 in the shape of ``groups``, and what scales them."""

    @abstractmethod
    def _decode(self, codes: Tensor, scales: list[Tensor]) -> Tensor:
        """Inverse of ``_encode``, up to rounding."""

    def _pack(self, states_BHPGD: Tensor) -> tuple[Tensor, ...]:
        codes, *scales = self._encode(self._grouped(states_BHPGD))
        pages = codes.shape[:3]
        packed: Tensor = pack_codes(codes.reshape(pages.numel(), -1), self.format.bits)
        return packed.view((*pages, -1)), *scales

    def _unpack(self, parts: list[Tensor]) -> Tensor:
        packed, *scales = parts
        pages, page = packed.shape[:3], self.format.page
        codes = unpack_codes(
            packed.reshape(-1), self.format.bits, pages.numel(), page * self.channels
        )
        groups = (self.channels, page) if self.per_channel else (page, -1, self.group_size)
        return self._ungrouped(self._decode(codes.view(*pages, *groups), scales))

    def _grouped(self, states_BHPGD: Tensor) -> Tensor:
        if self.per_channel:
            return states_BHPGD.transpose(-1, -2)
        if self.order_BHD is not None:
            states_BHPGD = states_BHPGD.gather(-1, self._spread(self.order_BHD, states_BHPGD))
        return states_BHPGD.reshape((*states_BHPGD.shape[:-1], -1, self.group_size))

    def _ungrouped(self, groups: Tensor) -> Tensor:
        if self.per_channel:
            return groups.transpose(-1, -2)
        states_BHPGD = groups.flatten(-2)
        if self.order_BHD is None:
            return states_BHPGD
        return states_BHPGD.gather(-1, self._spread(self.order_BHD.argsort(-1), states_BHPGD))

    @staticmethod
    def _spread(order_BHD: Tensor, states_BHPGD: Tensor) -> Tensor:
        return order_BHD.long()[:, :, None, None].expand_as(states_BHPGD)

    def _pages_at_once(self, paged_BHPGD: Tensor) -> int:
        one = paged_BHPGD[:, :, :1].numel()
        return max(1, CHUNK_ELEMENTS // max(one, 1))


class IntPages(Pages):
    """Codes between least and largest value."""

    def _encode(self, groups: Tensor) -> tuple[Tensor, ...]:
        return encode_minmax(groups, self.format.bits)

    def _decode(self, codes: Tensor, scales: list[Tensor]) -> Tensor:
        return decode_minmax(codes, *scales)


class BfpPages(Pages):
    """Mantissas and shared exponents."""

    def _encode(self, groups: Tensor) -> tuple[Tensor, ...]:
        bits = self.format.bits
        exponents = fit_exponents(groups, bits).squeeze(-1)
        mantissas = encode(groups, exponents.unsqueeze(-1), bits).short()
        return (mantissas + (1 << (bits - 1))).to(torch.uint8), exponents

    def _decode(self, codes: Tensor, scales: list[Tensor]) -> Tensor:
        mantissas = codes.float().sub_(1 << (self.format.bits - 1))
        return mantissas.mul_(step_sizes(scales[0]).unsqueeze(-1)).to(self.dtype)


KINDS: dict[str, type[Pages]] = {"int": IntPages, "bfp": BfpPages}
