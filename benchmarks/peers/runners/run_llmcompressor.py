"""llm-compressor: GPTQ in activation order, or AWQ; saved as compressed-tensors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.quantization_config import CompressedTensorsConfig

from benchmarks.peers.job import ANSWER_FILE, Answer, Job
from benchmarks.peers.runners.clock import Clock, saved, versions
from benchmarks.peers.runners.dense import dense_weight, read_tokens, stored_bytes, write_dense

BATCH_ROWS = 8
COUNTED = "tensors of the saved safetensors: weight_packed (codes), scales, zero points, shapes"


def main(job: Job) -> None:
    """Quantize, save, load again for inference, dequantize."""
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    packed, clock = Path(job.out) / "packed", Clock()
    ids = read_tokens(job)
    rows = {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()}
    with clock.part("load"):
        model: Any = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.bfloat16)
        tokenizer = AutoTokenizer.from_pretrained(job.model)
    with clock.part("quantize"):
        oneshot(
            model=model,
            tokenizer=tokenizer,
            dataset=Dataset.from_dict(rows),
            recipe=recipe(job),
            max_seq_length=ids.shape[1],
            num_calibration_samples=ids.shape[0],
            batch_size=BATCH_ROWS,
            shuffle_calibration_samples=False,
        )
    with clock.part("save"):
        model.save_pretrained(packed, save_compressed=True)
    peak = saved(job)
    del model
    stored = stored_bytes(packed)
    answer = Answer(
        load_seconds=clock.seconds["load"],
        quantize_seconds=clock.seconds["quantize"],
        save_seconds=clock.seconds["save"],
        peak_bytes=peak,
        stored_bytes=stored,
        counted=COUNTED,
        settings={"recipe": [str(step) for step in recipe(job)], "batch_size": BATCH_ROWS},
        versions=versions("llmcompressor", "compressed-tensors"),
        logits_difference=dense_folder(job, packed, list(stored)) if job.dense else None,
    )
    answer.write(Path(job.out) / ANSWER_FILE)


def recipe(job: Job) -> list[Any]:
    """One scheme for all linears but the head."""
    scheme = QuantizationScheme(
        targets=["Linear"],
        weights=QuantizationArgs(
            num_bits=job.bits,
            type="int",
            symmetric=job.symmetric,
            strategy="group",
            group_size=job.group_size,
        ),
    )
    options: dict[str, Any] = {"config_groups": {"group_0": scheme}, "ignore": ["lm_head"]}
    if job.algorithm == "awq":
        return [AWQModifier(duo_scaling="both"), QuantizationModifier(**options)]
    return [GPTQModifier(**options)]


def dense_folder(job: Job, packed: Path, names: list[str]) -> float:
    """Write the dense weights of what was saved; the difference of logits."""
    model: Any = AutoModelForCausalLM.from_pretrained(
        packed,
        dtype=torch.bfloat16,
        quantization_config=CompressedTensorsConfig(run_compressed=False),
    ).eval()
    modules = {name: model.get_submodule(name) for name in names}
    dense = {n: dense_weight(m, m.in_features, torch.bfloat16) for n, m in modules.items()}
    return write_dense(job, dense, model)


if __name__ == "__main__":
    main(Job.read(Path(sys.argv[1])))
