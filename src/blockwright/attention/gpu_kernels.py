"""GPU kernels of flash-linear-attention for mixers, where it is installed.

Its operations take [B, N, H, ...] streams; one head of keys must serve one query head.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import Tensor

Operation = Callable[..., Any]


def missing(q: Tensor, k: Tensor) -> str:
    """Why mixers compute such streams themselves; empty where a kernel does."""
    if q.device.type != "cuda":
        return "the tensors are not on a GPU"
    if importlib.util.find_spec("fla") is None:
        return "flash-linear-attention is not installed"
    if q.shape[1] != k.shape[1]:
        return "query heads share heads of keys"
    return ""


def operation(name: str) -> Operation:
    """``chunk_<name>`` of ``fla.ops.<name>``."""
    found: Operation = getattr(import_module(f"fla.ops.{name}"), f"chunk_{name}")
    return found


def run(
    chunked: Operation, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Outputs [B, H, N, V] and the last state, for streams behind a state [B, H, D, V];
    ``log_decay`` is [B, H, N, D] or [B, H, N]."""
    streams = {"q": q, "k": k, "v": v, "g": log_decay}
    given: dict[str, Any] = {n: x.transpose(1, 2).contiguous() for n, x in streams.items()}
    if "head_first" in inspect.signature(chunked).parameters:  # its default was True once
        given["head_first"] = False
    output, last = chunked(**given, scale=1.0, initial_state=state, output_final_state=True)
    return output.transpose(1, 2), last
