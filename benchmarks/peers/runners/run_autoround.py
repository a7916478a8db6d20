"""AutoRound: rounding and ranges learned block by block; with AutoScheme, mixed bits."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from auto_round import AutoRound, AutoScheme
from auto_round.schemes import QuantizationScheme
from transformers import AutoModelForCausalLM, AutoTokenizer

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
TEXTS = Path("texts.json")
"""In the job's folder, where runners are started: AutoRound splits the paths of texts at spaces,
commas and colons.
"""
COUNTED = "tensors of the saved safetensors: qweight (codes), scales and qzeros"


def main(job: Job) -> None:
    """Quantize, save, load again for inference, dequantize."""
    torch.set_num_threads(job.threads)
    packed, clock = Path(job.out) / "packed", Clock()
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    settings = scheme_settings(job)
    with clock.part("load"):
        peer = AutoRound(
            job.model,
            tokenizer,
            **settings,
            **calibration(job, tokenizer),
            iters=job.steps,
            batch_size=BATCH_ROWS,
            seed=job.seed,
            device_map="cpu",
            enable_torch_compile=False,
        )
    with clock.part("quantize"):
        peer.quantize()
    with clock.part("save"):
        peer.save_quantized(str(packed), format="auto_round", inplace=True)
    peak = saved(job)
    del peer
    answer = Answer(
        load_seconds=clock.seconds["load"],
        quantize_seconds=clock.seconds["quantize"],
        save_seconds=clock.seconds["save"],
        peak_bytes=peak,
        stored_bytes=stored_bytes(packed),
        counted=COUNTED,
        settings={"iters": job.steps, "batch_size": BATCH_ROWS}
        | {name: str(value) for name, value in settings.items()},
        versions=versions("auto-round"),
        logits_difference=dense_folder(job, packed) if job.dense else None,
    )
    answer.write(Path(job.out) / ANSWER_FILE)


def scheme_settings(job: Job) -> dict[str, Any]:
    """One scheme for all linears, or a mix of given average bits."""
    options = [
        QuantizationScheme(
            bits=bits, group_size=job.group_size, sym=job.symmetric, data_type="int", act_bits=16
        )
        for bits in job.options or (job.bits,)
    ]
    if job.average_bits is None:
        return {"scheme": options[0]}
    return {"scheme": AutoScheme(avg_bits=job.average_bits, options=options)}


def calibration(job: Job, tokenizer: Any) -> dict[str, Any]:
    """The given tokens; AutoScheme takes texts alone, so it gets the texts of these tokens.

    Behind every row stands the next: texts that come out shorter than a sequence are dropped,
    longer ones are cut.
    """
    ids = read_tokens(job)
    rows, length = ids.shape
    if job.average_bits is None:
        return {"dataset": list(ids.split(1)), "nsamples": rows, "seqlen": length}
    texts = [tokenizer.decode(pair) for pair in torch.cat([ids, ids.roll(-1, 0)], dim=1)]
    TEXTS.write_text(json.dumps(texts), encoding="utf-8")
    return {"dataset": str(TEXTS), "nsamples": rows, "seqlen": length}


def dense_folder(job: Job, packed: Path) -> float:
    """Write the dense weights of what was saved; the difference of logits."""
    model = AutoModelForCausalLM.from_pretrained(packed, dtype="auto", device_map="cpu").eval()
    dtype = next(model.parameters()).dtype
    dense = {n: dense_weight(m, m.infeatures, dtype) for n, m in quantized_modules(model)}
    return write_dense(job, dense, model)


if __name__ == "__main__":
    main(Job.read(Path(sys.argv[1])))
