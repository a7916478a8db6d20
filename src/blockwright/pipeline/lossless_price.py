"""The price of a lossless fit: one weight is coded and decoded, the rest is counting."""

from __future__ import annotations

import time

import torch

from blockwright.checkpoint import Checkpoint
from blockwright.pipeline.lossless import CANDIDATE, codable_sites, open_lossless
from blockwright.pipeline.opening import Opened
from blockwright.pipeline.proving import fresh_seconds, peak_rss_bytes
from blockwright.progress import Progress
from blockwright.registry import format_named
from blockwright.stream import part_of
from blockwright.types import DenseSolution, FitRequest, PackedFormat, Price

READ_BYTES_PER_SECOND = 1e9
"""Reading, writing and hashing."""
READINGS = 4
"""Of the original's bytes: digests, coding, writing, comparing."""
HELD = 6
"""Times the bytes of the largest tensor that are there at once: it and its parts, coded, decoded
and compared."""
CODING_BYTES = 120_000_000
"""Chunks in flight."""
SHARE = 0.7
"""Of the original's bytes, about, in the library and again in the folder."""


def price_lossless(request: FitRequest, progress: Progress) -> Price:
    """Memory, disk and seconds of ``fit_lossless``; raises what that raises before it writes."""
    opened = open_lossless(request, progress)
    checkpoint = opened.original.checkpoint
    size = checkpoint.total_file_bytes
    coding, decoding = _seconds_per_byte(opened)
    parts = {
        "read, write and hash": READINGS * size / READ_BYTES_PER_SECOND,
        "code": coding * size,
        "decode": decoding * size,
        "reload": fresh_seconds(size, 1),
    }
    if request.speed:
        parts["reload and time"] = parts.pop("reload") + fresh_seconds(size, 2)
    return Price(
        memory_bytes=peak_rss_bytes() + CODING_BYTES + HELD * _largest(checkpoint),
        disk_bytes=int(2 * SHARE * size),
        seconds=sum(parts.values()),
        parts=parts,
    )


def _largest(checkpoint: Checkpoint) -> int:
    return max(map(checkpoint.nbytes, checkpoint.names))


def _seconds_per_byte(opened: Opened) -> tuple[float, float]:
    """Coding and decoding, seen on the largest weight of the first block that is coded."""
    sites = [site for found in codable_sites(opened).values() for site in found]
    first = min((site.block for site in sites if site.block is not None), default=None)
    site = max((site for site in sites if site.block == first), key=lambda site: site.weights)
    format = format_named(CANDIDATE.format)
    if not isinstance(format, PackedFormat):
        raise TypeError(f"{format.name} is not packed")
    parameter = opened.original.parameters.load([site.parameter])[site.parameter]
    values = part_of(site, parameter).contiguous()
    began = time.monotonic()
    packed = format.pack(DenseSolution(values_OI=values), None, torch.bfloat16)
    coded = time.monotonic()
    packed.rows(torch.arange(1))
    return (coded - began) / values.nbytes, (time.monotonic() - coded) / values.nbytes
