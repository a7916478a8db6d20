"""Formats and methods on one weight, with nothing around them.

python examples/format_by_hand.py
"""

import torch

from blockwright.numerics.losses import quadratic_error
from blockwright.registry import format_named, method_named
from blockwright.types import PackedFormat, Statistics

generator = torch.Generator().manual_seed(0)
W_OI = torch.randn(64, 128, generator=generator)
inputs = torch.randn(512, 128, generator=generator) @ torch.randn(128, 128, generator=generator)
gram = inputs.T @ inputs / len(inputs)

format = format_named("int3-g64")
assert isinstance(format, PackedFormat)
for name in ("rtn", "gptq"):
    solution = method_named(name).solve(W_OI, Statistics(tokens=512, input_gram=gram), format)
    packed = format.pack(solution, None, torch.float32)
    error = quadratic_error(packed.dequantize() - W_OI, gram) / quadratic_error(W_OI, gram)
    print(f"{name}: {packed.stored_bytes} bytes, relative output error {error:.4f}")
