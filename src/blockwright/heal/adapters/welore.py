"""welore: of a mixed model, only the factors of low rank are trained.

Paper:   Jaiswal et al., "From GaLore to WeLore: How Low-Rank Weights Non-uniformly Emerge from
         Low-Rank Gradients", ICML 2025: fine-tuning of the low-rank components (LRCs).
Idea:    Weights whose singular values fall fast are those that learn; they were stored as two
         factors, and the factors are what is trained.  The others stay as they are.

Shapes:  O out features, I in features, R rank; P = R (O + I).
Differs from the paper: which weights are factored was decided by the plan (or by ``ranks-t175``,
         the paper's threshold); factors whose values are quantized are trained by their scales.
Checked: tests/claims/test_adapters.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from blockwright.heal.adapter import Family, HostKind
from blockwright.heal.stored import StoredAdapter


@dataclass(frozen=True, kw_only=True)
class LowRankComponents(StoredAdapter):
    """Factors alone."""

    paper: ClassVar[str] = "Jaiswal et al., WeLore, ICML 2025"
    family: ClassVar[Family] = Family.SELECTIVE
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.FACTORED})


ADAPTER = LowRankComponents
