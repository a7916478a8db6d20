"""torchao, weight only, on a CPU: HQQ's int4 groups, or int8 groups rounded to nearest."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
from torchao.quantization import Int8WeightOnlyConfig, PerGroup, quantize_
from torchao.quantization.quantize_.workflows import Int4ChooseQParamsAlgorithm
from transformers import AutoModelForCausalLM

from benchmarks.peers.job import ANSWER_FILE, Answer, Job
from benchmarks.peers.runners.clock import Clock, saved, versions
from benchmarks.peers.runners.dense import (
    dense_weight,
    packed_bytes,
    quantized_modules,
    write_dense,
)

COUNTED = "tensors that a weight is made of: codes, and scales (and zeros) in bfloat16"


def main(job: Job) -> None:
    """Quantize in place, save, dequantize what inference would use."""
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    config, clock = config_of(job), Clock()
    with clock.part("load"):
        model: Any = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.bfloat16).eval()
    head = model.get_output_embeddings()
    with clock.part("quantize"):
        quantize_(model, config, lambda module, _: is_block_linear(module, head))
    with clock.part("save"):
        torch.save(model.state_dict(), Path(job.out) / "packed.pt")
    peak = saved(job)
    modules = dict(quantized_modules(model))
    difference = None
    if job.dense:
        dense = {n: dense_weight(m, m.in_features, torch.bfloat16) for n, m in modules.items()}
        difference = write_dense(job, dense, model)
    answer = Answer(
        load_seconds=clock.seconds["load"],
        quantize_seconds=clock.seconds["quantize"],
        save_seconds=clock.seconds["save"],
        peak_bytes=peak,
        stored_bytes={name: packed_bytes(module.weight) for name, module in modules.items()},
        counted=COUNTED,
        settings={"config": str(config)},
        versions=versions("torchao"),
        logits_difference=difference,
    )
    answer.write(Path(job.out) / ANSWER_FILE)


def config_of(job: Job) -> Any:
    """What can be packed on a CPU; ``SystemExit`` for other bits."""
    if job.bits == 4:
        return PrototypeInt4WeightOnlyConfig(
            group_size=job.group_size,
            int4_choose_qparams_algorithm=Int4ChooseQParamsAlgorithm.HQQ,
        )
    if job.bits == 8:
        return Int8WeightOnlyConfig(granularity=PerGroup(job.group_size))
    raise SystemExit(f"torchao packs 4 and 8 bits on a CPU, not {job.bits}")


def is_block_linear(module: nn.Module, head: nn.Module) -> bool:
    """All linears but the head."""
    return isinstance(module, nn.Linear) and module is not head


if __name__ == "__main__":
    main(Job.read(Path(sys.argv[1])))
