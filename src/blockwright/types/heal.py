"""What ``heal`` is asked and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blockwright.types.measurement import Quality

DEFAULT_MINUTES = 5.0


@dataclass(frozen=True, kw_only=True)
class HealRequest:
    """One healing of a fitted folder.  None means the default named in the command's help."""

    model: str
    against: str
    """The original."""
    out: Path
    data: Path | None = None
    eval_text: Path | None = None
    adapter: str = "auto"
    optimizer: str = "adam"
    minutes: float | None = None
    """Turned into steps by one timed probe, and stored; None beside ``steps``, or the default."""
    steps: int | None = None
    blockwise: bool = False
    """Whether blocks are healed one at a time; ``steps`` are then those of every block."""
    rate: float | None = None
    """First learning rate: a step's change of an element, relative to its size."""
    tables: bool = True
    """Whether embeddings and heads that are kept are trained."""
    save_adapter: Path | None = None
    """Where the adapter is written, too, in peft's files."""
    batch_tokens: int | None = None
    sequence_length: int | None = None
    eval_tokens: int | None = None
    revision: str | None = None
    seed: int = 0
    threads: int | None = None
    device: str = "cpu"
    trust_remote_code: bool = False


@dataclass(frozen=True, kw_only=True)
class MergeResult:
    """A model with an adapter merged into it."""

    out: Path
    hosts: int
    beside: int
    """Of them, those that keep it as a path beside their weight."""
    size_bytes_before: int
    size_bytes: int

    def to_json(self) -> dict[str, Any]:
        """The flat object that ``merge --json`` prints."""
        return asdict(self) | {"out": str(self.out)}


@dataclass(frozen=True, kw_only=True)
class AverageResult:
    """The mean of some models."""

    out: Path
    models: int
    units: int
    """FFN channels and key-value heads that were matched with the first model's, of all others."""
    moved: int
    """Of them, those that were in another place."""
    size_bytes: int
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The flat object that ``merge --with --json`` prints."""
        return asdict(self) | {"out": str(self.out), "notes": list(self.notes)}


@dataclass(frozen=True, kw_only=True)
class HealResult:
    """What came out; qualities on the held-out text."""

    out: Path
    adapters: Mapping[str, int]
    """Adapter -> hosts."""
    trainable: int
    """Numbers that were trained."""
    parameters: int
    """Of the loaded model's own parameters, packed ones left out."""
    optimizer: str
    optimizer_bytes: int
    steps: int
    best_step: int
    """Whose state is in the folder; 0: the start's, nothing was better."""
    rollbacks: int
    tokens_per_step: int
    selection_loss_before: float
    selection_loss_after: float
    original: Quality
    before: Quality
    after: Quality
    recovered: float | None
    """Share of the excess loss that is gone; None where there was none, or no language head."""
    size_bytes_before: int
    size_bytes: int
    seconds: float
    training_seconds: float
    """Of this process; a resumed run's own part."""
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The flat object that ``heal --json`` prints."""
        data = asdict(self) | {"out": str(self.out), "notes": list(self.notes)}
        for name in ("original", "before", "after"):
            quality: Mapping[str, Any] = data.pop(name)
            kept = {key: value for key, value in quality.items() if key != "tokens"}
            data |= {f"{key}_{name}": value for key, value in kept.items() if value is not None}
        return data | {"eval_tokens": self.after.tokens}
