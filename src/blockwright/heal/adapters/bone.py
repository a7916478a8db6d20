"""bone: every tile of a weight is multiplied by a small matrix that its row of tiles shares.

Paper:   Kang, "Bone: Block Affine Transformation as Parameter Efficient Fine-tuning Methods for
         Large Language Models", 2024.
Idea:    The change of a tile is the tile itself times a trained matrix, plus that matrix: it is led
         by the weight, and its rank is not limited.

Equations -> code     dT[g, i] = T[g, i] B[g] + B[g],  B [O / R, R, R]     peft ("bat")
Shapes:  O out features, I in features, R side of a tile; P = R O.
Differs from the paper: nothing known (peft's own layers).
Raises:  AdapterError where R does not divide O and I.
Checked: tests/claims/test_adapters.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from blockwright.errors import CandidateError
from blockwright.heal.adapter import Family, Host, HostKind, Setting
from blockwright.heal.through_peft import PeftAdapter, peft_library


@dataclass(frozen=True, kw_only=True)
class Bone(PeftAdapter):
    """Affine tiles."""

    paper: ClassVar[str] = "Kang, Bone, 2024"
    family: ClassVar[Family] = Family.REPARAMETERIZED
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.DENSE})
    peft_type: ClassVar[str] = "MISS"

    rank: int = 16

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise CandidateError(f"option bone@rank: got {self.rank}, needs 1 or more")

    def refusal(self, host: Host) -> str:
        if host.packed is None and host.site.transposed:
            return "peft has it for linears only, not for transposed ones"
        if found := super().refusal(host):
            return found
        uneven = any(size % self.rank for size in host.shape)
        return f"tiles of {self.rank} do not divide {host.shape}" if uneven else ""

    def config(self, hosts: Sequence[Host], setting: Setting) -> Any:
        return peft_library("bone").MissConfig(
            r=self.rank, init_weights="bat", target_modules=[host.path for host in hosts]
        )


ADAPTER = Bone
