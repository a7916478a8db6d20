"""stored: everything in floating point that a packed weight is made of.

Paper:   none: EfficientQAT's E2E-QP (2024) and masked fine-tuning, for any format.
Idea:    A format that keeps values under a mask, factors, scales or codebooks can be trained in
         place, whatever it is: what it stores stays what it was in kind and in bytes, and zeros
         stay zeros.

Shapes:  O out features, I in features.
Differs from the paper: see e2eqp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from blockwright.heal.adapter import Family, HostKind
from blockwright.heal.stored import StoredAdapter


@dataclass(frozen=True, kw_only=True)
class EverythingStored(StoredAdapter):
    """Scales, offsets, codebooks, factors, kept values."""

    paper: ClassVar[str] = "after Chen et al., EfficientQAT, 2024"
    family: ClassVar[Family] = Family.SELECTIVE
    hosts: ClassVar[frozenset[HostKind]] = frozenset(HostKind) - {HostKind.DENSE}


ADAPTER = EverythingStored
