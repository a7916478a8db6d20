"""Double quantization: the scales of groups are themselves stored as 8-bit codes.

Paper:   Dettmers, Pagnoni, Holtzman, Zettlemoyer, "QLoRA: Efficient Finetuning of Quantized LLMs",
         NeurIPS 2023, section 3; the offset at the least scale is that of Guo et al., "LQ-LoRA",
         ICLR 2024, which keeps scales positive.
Idea:    A scale of 16 bits for every 64 weights is a quarter of a bit each.  Scales of one tensor
         are alike, so 8 bits of uniform steps between the least and the largest of 256 do.

    scale = offset + step code,   code 0 .. 255

Shapes:  O out features, G groups per row, C = ceil(O / 256): a chunk is up to 256 outputs of one
         group of inputs, so that any whole groups of inputs are stored by themselves.
Units:   8 bits per scale, and 48 bits per chunk.
Differs: uniform steps (QLoRA: an 8-bit dynamic table around the mean; here it would have to stay
         above zero); an fp32 offset per chunk (theirs: per tensor), the step in bfloat16.  As with
         all ranges, a step that was rounded up so far that code 255 would stay unused is taken one
         lower, so that stored scales are stored again as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from blockwright.numerics.ranges import SCALE_DTYPE, next_lower

CHUNK = 256
"""Outputs that share an offset and a step."""
TOP = 255
LEAST_RANGE = 2.0**-12
"""Scales that differ by less than this share of the least one get one code: bfloat16 would not
tell them apart either.
"""
OFFSET_DTYPE, STEP_DTYPE = torch.float32, SCALE_DTYPE


def chunks_of(out_features: int) -> int:
    """C"""
    return -(-out_features // CHUNK)


@dataclass(frozen=True)
class DoubleScales:
    """Scales [O, G] as stored."""

    codes: Tensor
    """uint8 [G, O]"""
    offset: Tensor
    """fp32 [G, C]: the least scale of a chunk"""
    step: Tensor
    """bfloat16 [G, C]"""

    @classmethod
    def nearest(cls, scale_OG: Tensor, unused_OG: Tensor | None = None) -> DoubleScales:
        """Codes of the nearest steps.  ``unused_OG``: scales that may become any number."""
        O = scale_OG.shape[0]  # noqa: E741
        missing = chunks_of(O) * CHUNK - O
        scale_GCK = _chunked(scale_OG, missing)
        free = torch.zeros_like(scale_OG) if unused_OG is None else unused_OG.float()
        ignored = _chunked(free, missing, value=1.0) > 0
        low = scale_GCK.masked_fill(ignored, torch.inf).amin(-1)
        high = scale_GCK.masked_fill(ignored, 0.0).amax(-1)
        offset = torch.where(torch.isfinite(low), low, 1.0)
        span = (high - offset).clamp_(min=0)
        step = (span / TOP).to(STEP_DTYPE).float()
        step = torch.where((span / step).round() < TOP, next_lower(step), step)
        step = torch.where(span > LEAST_RANGE * offset, step, 0.0)
        divisor = torch.where(step > 0, step, 1.0).unsqueeze(-1)
        codes = (scale_GCK - offset.unsqueeze(-1)).div_(divisor).round_().clamp_(0, TOP)
        codes = codes.masked_fill_(ignored | (step == 0).unsqueeze(-1), 0).to(torch.uint8)
        return cls(codes.flatten(1)[:, :O].contiguous(), offset, step.to(STEP_DTYPE))

    def scale(self) -> Tensor:
        """fp32 [O, G], with gradients to offset and step."""
        O = self.codes.shape[1]  # noqa: E741
        offset, step = (
            each.float().repeat_interleave(CHUNK, dim=1)[:, :O] for each in (self.offset, self.step)
        )
        return (self.codes.float() * step + offset).T


def _chunked(values_OG: Tensor, missing: int, value: float = 0.0) -> Tensor:
    """[G, C, 256], the last chunk filled up."""
    padded = F.pad(values_OG.float().T, (0, missing), value=value)
    return padded.reshape(padded.shape[0], -1, CHUNK)
