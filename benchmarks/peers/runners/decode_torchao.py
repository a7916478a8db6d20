"""torchao on a CPU: packed int4 groups (tinygemm) or int8 rows; the head is int8."""

from __future__ import annotations

import ctypes
import gc
from typing import Any

import torch
from torch import nn
from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from transformers import AutoModelForCausalLM

from benchmarks.peers.job import SpeedJob
from benchmarks.peers.runners.clock import versions
from benchmarks.peers.runners.speed import main
from benchmarks.peers.runners.torch_engine import TorchEngine


def prepare(job: SpeedJob) -> None:
    """Nothing is stored: weights are rounded when the model is loaded."""


def load(job: SpeedJob) -> TorchEngine:
    """Round block linears and head in place."""
    torch.set_num_threads(job.threads)
    model: Any = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.bfloat16).eval()
    head = model.get_output_embeddings()

    def in_block(module: nn.Module, _: str) -> bool:
        return isinstance(module, nn.Linear) and module is not head

    linears = (
        PrototypeInt4WeightOnlyConfig(group_size=job.group_size)
        if job.bits == 4
        else Int8WeightOnlyConfig()
    )
    quantize_(model, linears, in_block)
    quantize_(model, Int8WeightOnlyConfig(), lambda module, _: module is head)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    settings = {"linears": str(linears), "head": "Int8WeightOnlyConfig", "embedding": "bfloat16"}
    return TorchEngine(model, settings, versions("torchao"))


if __name__ == "__main__":
    main(prepare, load)
