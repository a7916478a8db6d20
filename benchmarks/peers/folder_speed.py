"""Our own folders, and the plain bf16 one, in the loop that times peers: run by this Python."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM

import blockwright
from benchmarks.peers.job import SpeedJob
from benchmarks.peers.runners.clock import versions
from benchmarks.peers.runners.speed import main
from benchmarks.peers.runners.torch_engine import TorchEngine


def prepare(job: SpeedJob) -> None:
    """Folders are written by the benchmark."""


def load(job: SpeedJob) -> TorchEngine:
    """As a user would."""
    torch.set_num_threads(job.threads)
    model = AutoModelForCausalLM.from_pretrained(job.stored, dtype="auto").eval()
    found = versions() | {"blockwright": blockwright.__version__}
    return TorchEngine(model, {"bits": job.bits, "group_size": job.group_size}, found)


if __name__ == "__main__":
    main(prepare, load)
