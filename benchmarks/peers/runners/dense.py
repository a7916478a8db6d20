"""Dense weights as a peer's own inference uses them, and the proof that they are.

Every quantized module is run on the identity matrix: products with 1 and sums of zeros are exact,
so what comes out is the weight that its forward multiplies by, whatever the packing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from benchmarks.peers.job import DENSE_FILE, Job

CODES = ("qweight", "W_q", "weight_packed")
"""A module that has one of these is a quantized linear."""
FLATTEN = "__tensor_flatten__"
"""What tensors made of several tensors have."""
PROBE_TOKENS = 64
TOLERANCE = 0.02
"""Largest ``logits_difference``: both sides compute in the peer's dtype, in another order."""


def read_tokens(job: Job) -> Tensor:
    """Calibration tokens, int64 [rows, T]."""
    ids: Tensor = load_file(job.tokens)["ids"]
    return ids


def quantized_modules(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Quantized linears by their names in the model."""
    for name, module in model.named_modules():
        held = any(getattr(module, code, None) is not None for code in CODES)
        if held or hasattr(getattr(module, "weight", None), FLATTEN):
            yield name, module


def packed_bytes(tensor: Any) -> dict[str, int]:
    """Bytes of the plain tensors that a weight is made of, by their names."""
    if not hasattr(tensor, FLATTEN):
        return {"": int(tensor.nbytes)}
    found = {}
    for name in tensor.__tensor_flatten__()[0]:
        for inner, nbytes in packed_bytes(getattr(tensor, name)).items():
            found[f"{name}.{inner}".rstrip(".")] = nbytes
    return found


@torch.no_grad()
def dense_weight(module: Any, in_features: int, dtype: torch.dtype) -> Tensor:
    """W [out, in], fp32: what the module's own forward multiplies ``dtype`` inputs by."""
    bias, module.bias = module.bias, None
    try:
        W_IO: Tensor = module(torch.eye(in_features, dtype=dtype))
    finally:
        module.bias = bias
    return W_IO.float().T.contiguous()


def write_dense(job: Job, weights: Mapping[str, Tensor], peer: nn.Module) -> float:
    """Write dense weights by parameter name, prove them, and return the difference of logits.

    ``weights``: by module.  Raises ``SystemExit`` where the peer's own forward gives something else
    than plain transformers with these weights.
    """
    tensors = {f"{name}.weight": weight for name, weight in weights.items()}
    tensors |= changed_tensors(peer, job, tensors)
    Path(job.out).mkdir(parents=True, exist_ok=True)
    save_file(tensors, Path(job.out) / DENSE_FILE)
    difference = logits_difference(job, tensors, peer)
    if not difference <= TOLERANCE:
        raise SystemExit(
            f"the dense weights are not what the peer computes with: logits differ by"
            f" {difference:.3g}, {TOLERANCE:g} is allowed; report this"
        )
    return difference


def changed_tensors(peer: nn.Module, job: Job, known: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whatever else the peer's model holds otherwise than the original: norms, biases, tables.

    A tensor that is the original's in the peer's dtype counts as unchanged.
    """
    found = {}
    parameters = dict(peer.named_parameters())
    for path in sorted(Path(job.model).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in sorted(set(file.keys()) & parameters.keys() - known.keys()):
                original = file.get_tensor(name)
                tensor = parameters[name].detach()
                if not torch.equal(original.to(tensor.dtype), tensor):
                    found[name] = tensor.float().contiguous()
    return found


@torch.no_grad()
def logits_difference(job: Job, tensors: Mapping[str, Tensor], peer: nn.Module) -> float:
    """Relative, on the first calibration tokens."""
    ids = read_tokens(job)[:1, :PROBE_TOKENS]
    dtype = next(peer.parameters()).dtype
    plain = AutoModelForCausalLM.from_pretrained(job.model, dtype=dtype).eval()
    unknown = plain.load_state_dict(dict(tensors), strict=False).unexpected_keys
    if unknown:
        raise SystemExit(f"the original has no parameter {unknown[0]}; report this")
    theirs = peer(input_ids=ids).logits.float()
    ours = plain(input_ids=ids).logits.float()
    return float((theirs - ours).norm() / theirs.norm())


def stored_bytes(folder: Path) -> dict[str, dict[str, int]]:
    """Bytes of every tensor of every quantized linear in a folder's safetensors, biases left out:
    module -> tensor -> bytes.
    """
    sizes: dict[str, dict[str, int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                module, _, tensor = name.rpartition(".")
                sizes.setdefault(module, {})[tensor] = file.get_tensor(name).nbytes
    return {
        module: {tensor: nbytes for tensor, nbytes in tensors.items() if tensor != "bias"}
        for module, tensors in sizes.items()
        if any(code in tensors for code in CODES)
    }
