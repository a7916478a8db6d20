"""HQQ: no calibration data, floating zero points."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from hqq.core.quantize import BaseQuantizeConfig
from hqq.models.hf.base import AutoHQQHFModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.peers.job import ANSWER_FILE, Answer, Job
from benchmarks.peers.runners.clock import Clock, saved, versions
from benchmarks.peers.runners.dense import dense_weight, quantized_modules, write_dense

COMPUTE_DTYPE = torch.float16
"""HQQ's own default; its scales and zeros are stored in it."""
STORED = ("W_q", "scale", "zero")
COUNTED = (
    "tensors of every module's state: W_q (codes; ten of 3 bits in 32), scale and zero in fp16;"
    " numbers that describe the layout are left out"
)


def main(job: Job) -> None:
    """Quantize, save, dequantize what inference would use."""
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    settings: dict[str, Any] = {"nbits": job.bits, "group_size": job.group_size, "axis": 1}
    clock = Clock()
    with clock.part("load"):
        model = AutoModelForCausalLM.from_pretrained(job.model, dtype=COMPUTE_DTYPE)
    with clock.part("quantize"):
        AutoHQQHFModel.quantize_model(
            model, BaseQuantizeConfig(**settings), compute_dtype=COMPUTE_DTYPE, device="cpu"
        )
    with clock.part("save"):
        AutoHQQHFModel.save_quantized(model, str(Path(job.out) / "packed"))
    peak = saved(job)
    modules = dict(quantized_modules(model))
    difference = None
    if job.dense:
        dense = {n: dense_weight(m, m.meta["shape"][1], COMPUTE_DTYPE) for n, m in modules.items()}
        difference = write_dense(job, dense, model.eval())
    answer = Answer(
        load_seconds=clock.seconds["load"],
        quantize_seconds=clock.seconds["quantize"],
        save_seconds=clock.seconds["save"],
        peak_bytes=peak,
        stored_bytes={name: state_bytes(module) for name, module in modules.items()},
        counted=COUNTED,
        settings=settings | {"dtype": str(COMPUTE_DTYPE)},
        versions=versions("hqq"),
        logits_difference=difference,
    )
    answer.write(Path(job.out) / ANSWER_FILE)


def state_bytes(module: Any) -> dict[str, int]:
    """Bytes of codes, scales and zeros."""
    tensors: dict[str, Tensor] = {"W_q": module.W_q, **module.meta}
    return {name: tensors[name].nbytes for name in STORED}


if __name__ == "__main__":
    main(Job.read(Path(sys.argv[1])))
