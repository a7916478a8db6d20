"""What ``fit`` is asked and what it answers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from blockwright.errors import BudgetError
from blockwright.types.budget import Budget
from blockwright.types.measurement import LimitFigures, Quality, Speed


class Preset(StrEnum):
    """How much time to spend."""

    FAST = "fast"
    BALANCED = "balanced"
    BEST = "best"


WITHOUT_LOSS = (
    *("budget", "plan", "candidates", "preset", "calibration", "eval_text", "profile", "kv"),
    "attention",
    *("calibration_tokens", "sampled_share", "sequence_length", "eval_tokens"),
    *("heal", "heal_steps"),
)
"""What a lossless fit has no use for: nothing is chosen, calibrated or evaluated."""


@dataclass(frozen=True, kw_only=True)
class FitRequest:
    """One fit.  Paths are as the user gave them; None means the default named in the command's
    help.
    """

    model: str
    out: Path
    budget: Budget | None
    """None only when ``plan`` or ``lossless`` is given."""
    lossless: bool = False
    """Stands where a budget stands: every bit is kept, in as few bytes as that takes."""
    preset: Preset = Preset.BALANCED
    candidates: tuple[str, ...] = ()
    """Empty: those of the preset."""
    calibration: Path | None = None
    eval_text: Path | None = None
    library: Path | None = None
    plan: Path | None = None
    kv: tuple[str, ...] = ()
    """Formats on offer for KV caches under a limit on memory, ``keep`` alone for none; empty:
    int8 and int4."""
    attention: tuple[str, ...] = ()
    """Attention policies on offer under a limit on the speed of prefill; empty: none."""
    profile: Path | None = None
    """Machine profile for a limit on speed; None: the library's, measured once."""
    revision: str | None = None
    seed: int = 0
    threads: int | None = None
    calibration_tokens: int | None = None
    sampled_share: float | None = None
    """Share of the calibration tokens that the model writes itself; None: the preset's without
    ``calibration``, 0 with it."""
    sequence_length: int | None = None
    eval_tokens: int | None = None
    device: str = "cpu"
    trust_remote_code: bool = False
    speed: bool = True
    """Whether tokens per second and resident memory are measured at the end."""
    heal: float | None = None
    """Minutes of healing of the assembled model; turned into steps by one timed probe."""
    heal_steps: int | None = None
    """The same in steps."""
    recipe: Path | None = None
    """The recipe that this request came from: what it names must be what it was made with."""

    def __post_init__(self) -> None:
        if self.heal is not None and not 0 < self.heal < float("inf"):
            raise BudgetError(f"--heal {self.heal}: a positive number of minutes is needed")
        if self.heal is not None and self.heal_steps is not None:
            raise BudgetError("--heal and --heal-steps: give one of them")
        if not self.lossless:
            return
        for item in fields(self):
            default = None if item.name == "budget" else item.default
            if item.name in WITHOUT_LOSS and getattr(self, item.name) != default:
                raise BudgetError(
                    f"lossless: every bit is kept and nothing is chosen, so"
                    f" {item.name.replace('_', ' ')} ({getattr(self, item.name)}) has no use; leave"
                    " it or --lossless out"
                )


@dataclass(frozen=True, kw_only=True)
class Price:
    """What a run will take, estimated from one probed block."""

    memory_bytes: int
    """Peak resident memory."""
    disk_bytes: int
    """Library, working files and output."""
    seconds: float
    parts: dict[str, float]
    """Seconds by stage."""


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What came out, measured."""

    out: Path
    plan_path: Path
    report_path: Path
    bits_per_weight: float
    bits_per_weight_uniform: float | None
    size_bytes: int
    original_size_bytes: int
    original: Quality
    fitted: Quality
    uniform: Quality | None
    uniform_candidate: str | None
    original_speed: Speed | None
    fitted_speed: Speed | None
    seconds: float
    peak_rss_bytes: int
    library_hits: int
    library_misses: int
    unavailable: dict[str, str]
    """``site candidate`` -> reason."""
    limits: LimitFigures
    verified_tensors: int | None = None
    """Tensors that were hashed and are bit for bit the original's; None where bits were lost."""
    notes: tuple[str, ...] = ()
    """What the user must know: default texts, steps skipped by name ..."""

    def to_json(self) -> dict[str, Any]:
        """The flat object that ``fit --json`` prints."""
        uniform = self.uniform
        data: dict[str, Any] = {
            "out": str(self.out),
            "plan_path": str(self.plan_path),
            "report_path": str(self.report_path),
            "bits_per_weight": self.bits_per_weight,
            "bits_per_weight_uniform": self.bits_per_weight_uniform,
            "size_bytes": self.size_bytes,
            "original_size_bytes": self.original_size_bytes,
            "perplexity_original": self.original.perplexity,
            "perplexity_fitted": self.fitted.perplexity,
            "perplexity_uniform": uniform.perplexity if uniform else None,
            "kl_divergence": self.fitted.kl_divergence,
            "kl_divergence_uniform": uniform.kl_divergence if uniform else None,
            "top1_agreement": self.fitted.top1_agreement,
            "relative_error": self.fitted.relative_error,
            "cosine": self.fitted.cosine,
            "uniform_candidate": self.uniform_candidate,
            "eval_tokens": self.fitted.tokens,
            "seconds": self.seconds,
            "peak_rss_bytes": self.peak_rss_bytes,
            "library_hits": self.library_hits,
            "library_misses": self.library_misses,
            "verified_tensors": self.verified_tensors,
            "unavailable": self.unavailable,
            "notes": list(self.notes),
        }
        for name, speed in (("original", self.original_speed), ("fitted", self.fitted_speed)):
            data[f"prefill_tokens_per_second_{name}"] = (
                speed.prefill_tokens_per_second if speed else None
            )
            data[f"decode_tokens_per_second_{name}"] = (
                speed.decode_tokens_per_second if speed else None
            )
            data[f"resident_bytes_{name}"] = speed.resident_bytes if speed else None
        return data | asdict(self.limits)
