"""lora: a product of two thin matrices beside every weight.

Paper:   Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen, "LoRA: Low-Rank Adaptation of Large
         Language Models", ICLR 2022; beside quantized weights it is QLoRA (Dettmers, Pagnoni,
         Holtzman, Zettlemoyer, NeurIPS 2023).
Idea:    What fine-tuning changes has a low rank.  The weight stays, so that it may be quantized,
         and only the factors have gradients and optimizer states.

Equations -> code     y = x W^T + s (x A^T) B^T, A random, B zero, s = alpha / R     peft
Shapes:  O out features, I in features, R rank; P = R (O + I).
Differs from the paper: nothing known (peft's own layers); alpha = 2 R.
Checked: tests/claims/test_adapters.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from blockwright.errors import CandidateError
from blockwright.heal.adapter import Family, Host, Setting
from blockwright.heal.through_peft import NAME, PeftAdapter, peft_library


@dataclass(frozen=True, kw_only=True)
class Lora(PeftAdapter):
    """One rank for all hosts."""

    paper: ClassVar[str] = "Hu et al., LoRA, ICLR 2022"
    family: ClassVar[Family] = Family.REPARAMETERIZED
    peft_type: ClassVar[str] = "LORA"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise CandidateError(f"option lora@rank: got {self.rank}, needs 1 or more")

    def config(self, hosts: Sequence[Host], setting: Setting) -> Any:
        return peft_library("lora").LoraConfig(
            r=self.rank,
            lora_alpha=2 * self.rank,
            target_modules=[host.path for host in hosts],
            fan_in_fan_out=any(host.site.transposed and host.packed is None for host in hosts),
        )

    def peft_factors(self, layer: Any) -> tuple[Tensor, Tensor]:
        up = layer.scaling[NAME] * layer.lora_B[NAME].weight.detach()
        return up, layer.lora_A[NAME].weight.detach()


ADAPTER = Lora
