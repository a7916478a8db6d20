"""dora: LoRA on the direction of every row, and its length by itself.

Paper:   Liu, Wang, Yin, Molchanov, Wang, Cheng, Chen, "DoRA: Weight-Decomposed Low-Rank
         Adaptation", ICML 2024.
Idea:    Full fine-tuning changes lengths and directions of rows in other proportions than LoRA
         does; with a number per row for the length, low rank has to learn the direction alone.

Equations -> code     W' = diag(m / n) (W + s B A), n = row norms of W + s B A, m trained     peft
Shapes:  O out features, I in features, R rank; P = R (O + I) + O.
Differs from the paper: nothing known (peft's own layers).
Checked: tests/claims/test_adapters.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from blockwright.heal.adapter import Family, Host, HostKind, Setting
from blockwright.heal.adapters.lora import Lora


@dataclass(frozen=True, kw_only=True)
class Dora(Lora):
    """Low rank and row lengths."""

    paper: ClassVar[str] = "Liu et al., DoRA, ICML 2024"
    family: ClassVar[Family] = Family.REPARAMETERIZED
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.DENSE})

    def config(self, hosts: Sequence[Host], setting: Setting) -> Any:
        found = super().config(hosts, setting)
        found.use_dora = True
        return found

    def pace(self, name: str, host: Host) -> float:
        if "magnitude" not in name:
            return 1.0
        lengths_O: Tensor = host.weight().square().sum(1).sqrt()
        return lengths_O.mean().item()


ADAPTER = Dora
