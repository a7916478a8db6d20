"""A fitted folder as a student, and what is trained of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM

import blockwright  # noqa: F401 - registers the quantizer
from blockwright.anatomy import Skeleton
from blockwright.checkpoint import Checkpoint
from blockwright.errors import AdapterError
from blockwright.heal import Chosen, Setting, Student, attach_chosen, choose_adapters
from blockwright.heal.choosing import AUTO
from blockwright.types import SiteKind

KEPT_PER_TOKEN = 256
"""Bytes that a block keeps for its backward, per token and hidden feature: about 64 floats."""
LARGEST_KEPT_BYTES = 2 * 2**30


def load_student(
    folder: Path, skeleton: Skeleton, *, device: str = "cpu", trust_remote_code: bool = False
) -> Student:
    """Load a folder in fp32, its packed modules in their portable state."""
    builder = AutoModelForCausalLM if skeleton.task == "causal-lm" else AutoModel
    model: Any = builder.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, trust_remote_code=trust_remote_code
    )
    model = model.eval().to(device)
    checkpoint = Checkpoint.open(folder)
    dtypes = {name: checkpoint.dtype(name) for name in checkpoint.names}
    return Student(model, skeleton.sites, dtypes)


def train_what_fits(
    student: Student,
    skeleton: Skeleton,
    adapter: str,
    *,
    tables: bool,
    seed: int,
    sample: Mapping[str, Tensor],
) -> Sequence[Chosen]:
    """Attach adapters; with ``auto`` norms, biases and (if asked) dense tables are trained, too.

    ``sample``: inputs that adapters may look at.  Raises ``AdapterError`` when nothing can be
    trained.
    """
    chosen = choose_adapters(student.hosts, adapter)
    parameters = student.stored_parameters() if adapter == AUTO else {}
    angles = partial(student.angles, skeleton.block_path, sample)
    attach_chosen(student, chosen, Setting(seed=seed, angles=angles))
    dense_tables = {s.parameter for s in skeleton.sites if s.kind is SiteKind.TABLE}
    student.train_parameters(
        name
        for name, tensor in parameters.items()
        if tensor.ndim == 1 or (tables and name in dense_tables)
    )
    if not student.trained:
        raise AdapterError(
            f"adapter {adapter}: this model has no trainable parameter; name another --adapter"
        )
    return chosen


def keep_memory_low(student: Student, skeleton: Skeleton, batch_tokens: int) -> None:
    """Run blocks again in the backward where what they would keep is too much."""
    width = int(skeleton.config.get_text_config().hidden_size)
    if KEPT_PER_TOKEN * width * skeleton.num_blocks * batch_tokens > LARGEST_KEPT_BYTES:
        student.recompute(student.blocks(skeleton.block_path))
