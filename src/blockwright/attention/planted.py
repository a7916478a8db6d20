"""Queries and keys with known structure: columns, diagonals, topics, video neighbourhoods.

A bump of ``level`` nats between two directions gives both sides the amplitude
sqrt(level * sqrt(D)), so that their scaled product is ``level``.  D is 64: channel 0 holds columns,
1 scattered columns, 2..33 diagonals, 34..63 topics.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from blockwright.errors import AttentionError

WIDTH = 64
SLASH_FREQUENCIES, GRID_FREQUENCIES = 16, 32


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What is planted; levels are in nats."""

    noise: float = 0.4
    columns: int = 0
    """Columns that every query likes, the first token included."""
    scattered: float = 0.0
    """Fraction of columns that every query likes."""
    offsets: tuple[int, ...] = ()
    """Distances that every query likes."""
    frequency: float = 0.3
    """Greatest frequency of the diagonals: pi makes them one token wide."""
    topics: int = 0
    segment: int = 96
    """Tokens of a run that share a topic."""
    level: float = 0.0
    column_level: float | None = None
    """Of the columns, where it is another."""


PRESETS = {
    "vert": Preset(columns=8, level=9),
    "slash": Preset(offsets=(0, 300, 900), level=9),
    "cluster": Preset(topics=16, level=9),
    "mixed": Preset(columns=6, offsets=(0, 700), topics=16, level=8),
    "scatter": Preset(scattered=0.02, level=8),
    "flat": Preset(noise=1.0),
}


@dataclass(frozen=True, kw_only=True)
class Planted:
    """fp32 tensors [1, heads, tokens, 64]."""

    q: Tensor
    k: Tensor
    v: Tensor


def preset_named(name: str) -> Preset:
    """A preset; raises ``AttentionError`` with the known ones."""
    if name not in PRESETS:
        raise AttentionError(f"unknown data {name!r} (known: {', '.join(PRESETS)})")
    return PRESETS[name]


def plant(preset: Preset, tokens: int, *, heads: int = 1, seed: int = 0) -> Planted:
    """Heads differ by their seeds, which follow ``seed``."""
    made = [_plant_head(preset, tokens, seed * 1000 + head) for head in range(heads)]
    q, k, v = (torch.stack(part)[None] for part in zip(*made, strict=True))
    return Planted(q=q, k=k, v=v)


def plant_grid(
    grid: tuple[int, int, int],
    reach: tuple[float, float, float],
    *,
    level: float,
    heads: int = 1,
    seed: int = 0,
) -> Planted:
    """Video tokens that like their neighbours: within about ``reach`` per axis (inf: all along)."""
    made = [_plant_grid_head(grid, reach, level, seed * 1000 + head) for head in range(heads)]
    q, k, v = (torch.stack(part)[None] for part in zip(*made, strict=True))
    return Planted(q=q, k=k, v=v)


def drifted(x: Tensor, share: float, seed: int) -> Tensor:
    """The same tensor a denoising step later: noise of ``share`` times its spread is added."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    return x + share * x.std() * noise


def _plant_head(preset: Preset, tokens: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(tokens, WIDTH, generator=generator) for _ in range(3))
    q, k = q * preset.noise, k * preset.noise
    amplitude = math.sqrt(preset.level * math.sqrt(WIDTH))
    if preset.columns:
        chosen = torch.randperm(tokens, generator=generator)[: preset.columns]
        level = preset.level if preset.column_level is None else preset.column_level
        height = math.sqrt(level * math.sqrt(WIDTH))
        _plant_columns(q, k, 0, torch.cat([chosen, torch.zeros(1, dtype=torch.long)]), height)
    if preset.scattered:
        chosen = torch.randperm(tokens, generator=generator)[: int(preset.scattered * tokens)]
        _plant_columns(q, k, 1, chosen, amplitude)
    if preset.offsets:
        _plant_diagonals(q, k, preset, generator)
    if preset.topics:
        _plant_topics(q, k, preset, amplitude, generator)
    return q, k, v


def _plant_columns(q: Tensor, k: Tensor, channel: int, columns: Tensor, amplitude: float) -> None:
    q[:, channel] = amplitude
    k[:, channel] = 0.0
    k[columns, channel] = amplitude


def _plant_diagonals(q: Tensor, k: Tensor, preset: Preset, generator: torch.Generator) -> None:
    frequency = torch.rand(SLASH_FREQUENCIES, generator=generator) * preset.frequency
    amplitude = math.sqrt(preset.level * math.sqrt(WIDTH) / SLASH_FREQUENCIES)
    position = torch.arange(len(q))[:, None]
    channels = slice(2, 2 + 2 * SLASH_FREQUENCIES)
    q[:, channels] += amplitude * _waves(position * frequency)
    k[:, channels] += amplitude * sum(
        (_waves((position + offset) * frequency) for offset in preset.offsets),
        start=torch.zeros(len(k), 2 * SLASH_FREQUENCIES),
    )


def _plant_topics(
    q: Tensor, k: Tensor, preset: Preset, amplitude: float, generator: torch.Generator
) -> None:
    first = 2 + 2 * SLASH_FREQUENCIES
    topics = torch.randn(preset.topics, WIDTH - first, generator=generator)
    topics = topics / topics.norm(dim=-1, keepdim=True)
    for x in (q, k):
        runs = -(-len(x) // preset.segment)
        drawn = torch.randint(preset.topics, (runs,), generator=generator)
        x[:, first:] += amplitude * topics[drawn].repeat_interleave(preset.segment, 0)[: len(x)]


def _plant_grid_head(
    grid: tuple[int, int, int], reach: tuple[float, float, float], level: float, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    place = torch.cartesian_prod(*(torch.arange(size) for size in grid)).float()
    spread = 1 / torch.tensor(reach)
    frequency = torch.randn(3, GRID_FREQUENCIES, generator=generator) * spread[:, None]
    amplitude = math.sqrt(level * math.sqrt(WIDTH) / GRID_FREQUENCIES)
    waves = amplitude * _waves(place @ frequency)
    noise = torch.randn(3, len(place), WIDTH, generator=generator)
    return waves + 0.4 * noise[0], waves + 0.4 * noise[1], noise[2]


def _waves(phase: Tensor) -> Tensor:
    return torch.cat([phase.cos(), phase.sin()], -1)
