"""optimum-quanto: weights rounded to nearest in its own groups.  No calibration of weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from optimum.quanto import freeze, qint2, qint4, qint8, quantize
from transformers import AutoModelForCausalLM

from benchmarks.peers.job import ANSWER_FILE, Answer, Job
from benchmarks.peers.runners.clock import Clock, saved, versions
from benchmarks.peers.runners.dense import (
    dense_weight,
    packed_bytes,
    quantized_modules,
    write_dense,
)

KINDS = {2: qint2, 4: qint4, 8: qint8}
COUNTED = (
    "tensors that a weight is made of: codes, scales and shifts in bfloat16; its groups are of 128"
    " inputs whatever was asked, its int8 has one scale per row"
)


def main(job: Job) -> None:
    """Quantize in place, save, dequantize what inference would use."""
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    if job.bits not in KINDS:
        raise SystemExit(f"optimum-quanto has 2, 4 and 8 bits, not {job.bits}")
    clock = Clock()
    with clock.part("load"):
        model: Any = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.bfloat16).eval()
    with clock.part("quantize"):
        quantize(model, weights=KINDS[job.bits], exclude=head_name(model))
        freeze(model)
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
        settings={"weights": f"qint{job.bits}"},
        versions=versions("optimum-quanto"),
        logits_difference=difference,
    )
    answer.write(Path(job.out) / ANSWER_FILE)


def head_name(model: Any) -> str:
    """The head stays as it is."""
    head = model.get_output_embeddings()
    return next(str(name) for name, module in model.named_modules() if module is head)


if __name__ == "__main__":
    main(Job.read(Path(sys.argv[1])))
