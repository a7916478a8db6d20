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
class LimitFigures:
    """Memory and latency of a plan: predicted, and measured where a limit asked for it."""

    workload: str
    """Phase, batch and context that they are counted at."""
    profile: str
    """Digest of the machine profile; empty where none was used."""
    ram_bytes_predicted: int | None = None
    """Weights as resident, KV cache and activations; the Python process left out."""
    ram_bytes_measured: int | None = None
    """The same in a fresh process, beyond what it held before loading."""
    latency_ms_predicted: float | None = None
    latency_ms_measured: float | None = None
    """Of one forward, least of several fresh processes."""
    latency_ms_original: float | None = None
    """Measured in turn with it."""
    speedup_predicted: float | None = None
    speedup_measured: float | None = None

    @property
    def ram_bytes(self) -> int | None:
        """Memory as measured, else as predicted."""
        measured = self.ram_bytes_measured
        return measured if measured is not None else self.ram_bytes_predicted

    @property
    def speedup(self) -> float | None:
        """Speedup as measured, else as predicted."""
        measured = self.speedup_measured
        return measured if measured is not None else self.speedup_predicted


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Speed and memory of a loaded model, in a fresh process."""

    prefill_tokens_per_second: float | None
    decode_tokens_per_second: float | None
    """Batch 1."""
    resident_bytes: int
    """Resident memory after loading and generating, interpreter included."""
    threads: int
