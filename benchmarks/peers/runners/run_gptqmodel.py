"""GPTQModel with activation order."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

from benchmarks.peers.job import ANSWER_FILE, Answer, Job
from benchmarks.peers.runners.clock import Clock, saved, versions
from benchmarks.peers.runners.dense import (
    dense_weight,
    quantized_modules,
    read_tokens,
    stored_bytes,
    write_dense,
)

BATCH_ROWS = 8
COUNTED = (
    "tensors of the saved safetensors: qweight (codes), scales, qzeros and g_idx (the group of"
    " every input, which activation order needs)"
)


def main(job: Job) -> None:
    """Quantize, save, load again for inference, dequantize."""
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    settings = {
        "bits": job.bits,
        "group_size": job.group_size,
        "sym": job.symmetric,
        "desc_act": True,
        "act_group_aware": False,
        "device": "cpu",
    }
    rows = [
        {"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in read_tokens(job)
    ]
    packed, clock = Path(job.out) / "packed", Clock()
    with clock.part("load"):
        model = GPTQModel.load(job.model, QuantizeConfig(**settings))
    with clock.part("quantize"):
        model.quantize(rows, batch_size=BATCH_ROWS)
    with clock.part("save"):
        model.save(str(packed))
    peak = saved(job)
    del model
    difference = dense_folder(job, packed) if job.dense else None
    answer = Answer(
        load_seconds=clock.seconds["load"],
        quantize_seconds=clock.seconds["quantize"],
        save_seconds=clock.seconds["save"],
        peak_bytes=peak,
        stored_bytes=stored_bytes(packed),
        counted=COUNTED,
        settings=settings | {"batch_size": BATCH_ROWS},
        versions=versions("gptqmodel"),
        logits_difference=difference,
    )
    answer.write(Path(job.out) / ANSWER_FILE)


def dense_folder(job: Job, packed: Path) -> float:
    """Write the dense weights of what was saved; the difference of logits.

    Eagerly: it would compile the unpacking for every shape, which takes minutes.
    """
    torch.compiler.set_stance("force_eager")
    model = GPTQModel.load(str(packed), backend=BACKEND.GPTQ_TORCH, device="cpu").model.eval()
    dtype = next(model.parameters()).dtype
    dense = {n: dense_weight(m, m.in_features, dtype) for n, m in quantized_modules(model)}
    return write_dense(job, dense, model)


if __name__ == "__main__":
    main(Job.read(Path(sys.argv[1])))
