"""Formats of a KV cache, written in the candidate grammar.

    int4          codes and ranges; keys per channel over a page of tokens, values per token
    int4-g32      groups of 32 channels where a token is quantized by itself
    bfp4-b32      block floating point: 32 channels share an exponent
    int4@keys=token,window=64,page=32,sort=true

Keys per channel, values per token, the newest tokens exact: KIVI (Liu et al., 2024).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from blockwright.errors import CandidateError, FormatError
from blockwright.types.candidate import Candidate
from blockwright.types.memory import CacheGrowth

CACHE_VERSION = 1
SITE = ".kv_cache"
INT_BITS, BFP_BITS = range(1, 9), range(2, 9)
NAME = re.compile(r"(int|bfp)([1-8])(?:-([gb])([1-9][0-9]*))?")
GROUPS = {"int": "g", "bfp": "b"}
DEFAULT_GROUP = {"int": 64, "bfp": 32}
ALLOWED: dict[str, tuple[str, ...]] = {"keys": ("channel", "token"), "sort": ("true", "false")}
OPTIONS = ("keys", "page", "sort", "window")


def cache_site(block: str) -> str:
    """Id of the site of a block's KV cache."""
    return block + SITE


def cache_block(site: str) -> str:
    """The block whose KV cache a site is; empty for sites of other kinds."""
    return site.removesuffix(SITE) if site.endswith(SITE) else ""


class KeyGroups(StrEnum):
    """What shares a range in the keys."""

    CHANNEL = "channel"
    """One channel over a page of tokens."""
    TOKEN = "token"
    """Channels of one token, as in the values."""


@dataclass(frozen=True, kw_only=True)
class CacheFormat:
    """How one block's keys and values are kept.

    The newest ``window`` to ``window + page - 1`` tokens stay as the model made them.  Older ones
    are quantized a page at a time, once.
    """

    kind: str = "int"
    """``int`` (codes and ranges) or ``bfp`` (mantissas and shared exponents)."""
    bits: int = 4
    group_size: int = 64
    """Channels of a token that share a range, at most: the largest divisor of a head's channels."""
    keys: KeyGroups = KeyGroups.CHANNEL
    window: int = 128
    page: int = 64
    sort: bool = False
    """Whether keys grouped by token are sorted by the norm of their channels first (K-sort)."""

    @property
    def name(self) -> str:
        """Canonical name; ``parse`` inverts it."""
        plain = CacheFormat.parse(f"{self.kind}{self.bits}")
        group = f"-{GROUPS[self.kind]}{self.group_size}"
        text = f"{self.kind}{self.bits}" + (group if self.group_size != plain.group_size else "")
        given = {name: getattr(self, name) for name in OPTIONS}
        changed = [f"{n}={_text(v)}" for n, v in given.items() if v != getattr(plain, n)]
        return text + ("@" + ",".join(changed) if changed else "")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a name; raises ``CandidateError`` saying what is allowed."""
        candidate = Candidate.parse(text)
        match = NAME.fullmatch(candidate.format)
        if match is None or candidate.methods or candidate.values or candidate.plus:
            raise CandidateError(
                f"KV cache format {text!r}: give int1 to int8 or bfp2 to bfp8, with a group size"
                f" (int4-g32, bfp4-b16) and options ({', '.join(OPTIONS)}) where needed"
            )
        kind, bits, letter, size = match[1], int(match[2]), match[3], match[4]
        if (kind == "bfp" and bits not in BFP_BITS) or (letter and letter != GROUPS[kind]):
            raise CandidateError(
                f"KV cache format {text!r}: int1 to int8 take groups as -g64, bfp2 to bfp8 as -b32"
            )
        options: dict[str, Any] = {"keys": KeyGroups.TOKEN, "sort": True} if kind == "bfp" else {}
        options |= {name: _option(text, name, value) for name, value in candidate.options}
        group = int(size) if size else DEFAULT_GROUP[kind]
        return cls(kind=kind, bits=bits, group_size=group, **options)

    def __post_init__(self) -> None:
        if self.kind == "bfp" and self.keys is KeyGroups.CHANNEL:
            raise CandidateError("KV cache format bfp: exponents are shared by channels of a token")
        if self.page % 8 or self.page < 8 or self.window < 0:
            raise CandidateError(
                f"KV cache format: page={self.page}, window={self.window}: a page has a multiple of"
                " 8 tokens, a window 0 or more"
            )

    def group_of(self, channels: int) -> int:
        """Channels in a group of heads of so many."""
        most = min(self.group_size, channels)
        return next(size for size in range(most, 0, -1) if channels % size == 0)

    def growth(self, heads: int, channels: tuple[int, int], itemsize: int) -> CacheGrowth:
        """Bytes by tokens for ``heads`` KV heads with so many channels in keys and in values.

        ``itemsize``: bytes of one number as the model makes it.
        """
        width = sum(channels)
        range_bytes = 1 if self.kind == "bfp" else 2 * itemsize
        ranges = sum(
            channels[0] if self.keys is KeyGroups.CHANNEL and index == 0
            else self.page * (size // self.group_of(size))
            for index, size in enumerate(channels)
        )  # fmt: skip
        return CacheGrowth(
            token_bytes=heads * width * itemsize,
            window_tokens=self.window,
            page_tokens=self.page,
            page_bytes=heads * (width * self.page * self.bits // 8 + ranges * range_bytes),
            order_bytes=heads * channels[0] * 2 if self.sort else 0,
        )

    def spec(self) -> dict[str, Any]:
        """As a fitted folder's config holds it."""
        return {"format": self.name, "version": CACHE_VERSION}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """Inverse of ``spec``; raises ``FormatError`` for a newer version."""
        if spec.get("version", 0) > CACHE_VERSION:
            raise FormatError(
                f"this folder has a KV cache of version {spec['version']}, this Blockwright reads"
                f" up to {CACHE_VERSION}; upgrade Blockwright"
            )
        return cls.parse(str(spec["format"]))


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _option(text: str, name: str, value: str) -> Any:
    """An option's value, or ``CandidateError``."""
    if name not in OPTIONS:
        raise CandidateError(
            f"KV cache format {text!r} has no option {name!r} (known: {', '.join(OPTIONS)})"
        )
    where = f"KV cache format {text!r}: {name} is {value!r}"
    allowed = ALLOWED.get(name, ())
    if allowed and value not in allowed:
        raise CandidateError(f"{where}, allowed: {', '.join(allowed)}")
    if allowed:
        return KeyGroups(value) if name == "keys" else value == "true"
    if not value.isdecimal():
        raise CandidateError(f"{where}, needs a number")
    return int(value)
