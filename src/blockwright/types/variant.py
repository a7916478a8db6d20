"""Variants: a candidate built for one site, with its costs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


def packed_name(site: str, tensor: str) -> str:
    """Name of a packed site's tensor in an entry of several sites."""
    return f"packed/{site}/{tensor}"


def parameter_name(parameter: str) -> str:
    """Name of a parameter of the model in such an entry."""
    return f"parameter/{parameter}"


@dataclass(frozen=True, kw_only=True)
class VariantRecord:
    """The JSON half of a library entry; the packed tensors stand beside it."""

    key: str
    """Content address: hex digest of everything that decides the tensors."""
    site: str
    candidate: str
    stored_bytes: int = 0
    """Bytes of the stored tensors, bias included."""
    stored_tensors: int = 0
    """Their number: each has an entry in a file's header."""
    error: float = 0.0
    """tr(D H D^T), D = W_hat - W: squared output error, summed over outputs, mean over tokens."""
    relative_error: float = 0.0
    """error / tr(W H W^T)."""
    tokens: int = 0
    """Calibration tokens that reached the site."""
    seconds: float = 0.0
    """Time it took to build."""
    unavailable: str = ""
    """Why it could not be built; empty when it could."""
    format_spec: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    """What the key was made from, readable."""

    @property
    def available(self) -> bool:
        return not self.unavailable

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> VariantRecord:
        return cls(**data)
