"""What a format can take and who else can read it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class FormatLimits:
    """Declared limits of a format."""

    out_multiple: int = 1
    """The number of output features must be a multiple of this."""
    in_multiple: int = 1
    """The number of input features must be a multiple of this."""
    vllm: bool = False
    """vLLM can serve it after export."""
    llama_cpp: bool = False
    """llama.cpp can run it after export."""
    packed_on_cpu: bool = False
    """A packed CPU kernel multiplies it; otherwise it is dequantized on every call."""
    resident_bits: float = 16.0
    """Bits per weight in memory on CPU, scales left out."""
