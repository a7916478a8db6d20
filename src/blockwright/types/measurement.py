"""Measurements: figures taken from a finished model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Quality of a model on one text; against the original where there is one."""

    tokens: int
    """Predicted tokens (for encoders: positions compared)."""
    perplexity: float | None = None
    """exp of the mean cross-entropy, None for models without a language head."""
    kl_divergence: float | None = None
    """Mean KL(original || model) in nats per token."""
    top1_agreement: float | None = None
    """Share of positions with the same most likely token."""
    relative_error: float | None = None
    """||h - h_original|| / ||h_original|| of the last hidden state (encoders)."""
    cosine: float | None = None
    """Mean cosine of the last hidden states (encoders)."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Speed and memory of a loaded model, in a fresh process."""

    prefill_tokens_per_second: float | None
    decode_tokens_per_second: float | None
    """Batch 1."""
    resident_bytes: int
    """Resident memory after loading and generating, interpreter included."""
    threads: int
