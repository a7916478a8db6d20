"""e2eqp: scales of quantized weights, trained end to end on the real loss; codes stay.

Paper:   Chen, Shao, Xu, Wang, Zhang, Luo, "EfficientQAT: Efficient Quantization-Aware Training for
         Large Language Models", 2024: its second phase, E2E-QP.
Idea:    Codes decide which values a weight can have; steps decide what they are.  After codes were
         found block by block, the steps are few enough to be trained through the whole model, in
         place: not a byte is added, and nothing has to be merged.

Equations -> code     W = (q - z) s
    trained: s, fp32 during training, rounded to what is stored at every step     StoredAttachment
Shapes:  O out features, I in features, G = I / group_size; P = O G.
Differs from the paper:
    1. Every floating-point tensor that the format's weight depends on is trained: scales, offsets
       of affine formats, codebooks; found by asking, not by name.
    2. A step moves a scale by a share of its own size, so that one rate serves all of them; their
       signs cannot change within a small step.
Checked: tests/claims/test_adapters.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from blockwright.heal.adapter import Family, HostKind
from blockwright.heal.stored import StoredAdapter


@dataclass(frozen=True, kw_only=True)
class EndToEndSteps(StoredAdapter):
    """Scales alone."""

    paper: ClassVar[str] = "Chen et al., EfficientQAT, 2024"
    family: ClassVar[Family] = Family.SELECTIVE
    hosts: ClassVar[frozenset[HostKind]] = frozenset({HostKind.QUANTIZED, HostKind.TABLE})


ADAPTER = EndToEndSteps
