"""What runners share: dense weights are what a peer multiplies by, bytes are those of its files."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from benchmarks.peers.job import DENSE_FILE, Answer, Job
from benchmarks.peers.runners import dense
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from tests.conftest import ModelFolder

PEERS = Path(dense.__file__).resolve().parents[1]
LAYER = "model.layers.0.mlp.down_proj"


class Packed(nn.Module):
    """A quantized linear as peers have them: codes and scales, unpacked in its forward."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None = None) -> None:
        super().__init__()
        self.scales = weight_OI.abs().amax(1, keepdim=True) / 7
        self.qweight = (weight_OI / self.scales).round().to(torch.int8)
        self.bias = bias_O

    def forward(self, x: Tensor) -> Tensor:
        out = x @ (self.scales * self.qweight).to(x.dtype).T
        return out if self.bias is None else out + self.bias


def job(model: Path, out: Path) -> Job:
    tokens = out / "tokens.safetensors"
    save_file({"ids": torch.arange(5, 69).view(2, 32)}, tokens)
    return Job(
        model=str(model),
        tokens=str(tokens),
        out=str(out),
        bits=4,
        group_size=32,
        seed=0,
        threads=1,
    )


def quantized(model: Path) -> tuple[nn.Module, dict[str, Tensor]]:
    """A model with one packed linear, and the dense weight of it."""
    peer = AutoModelForCausalLM.from_pretrained(model).eval()
    parent = peer.get_submodule(LAYER.rpartition(".")[0])
    packed = Packed(parent.down_proj.weight.detach())
    parent.down_proj = packed
    found = dict(dense.quantized_modules(peer))
    return peer, {name: dense.dense_weight(m, 96, torch.float32) for name, m in found.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_dense_weight_is_exactly_what_the_forward_multiplies_by(dtype: torch.dtype) -> None:
    weight, bias = torch.randn(6, 16), torch.randn(6)
    module = Packed(weight, bias)
    expected = (module.scales * module.qweight).to(dtype).float()
    assert torch.equal(dense.dense_weight(module, 16, dtype), expected)
    assert module.bias is bias


def test_what_is_written_is_proved_by_the_peers_logits(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    peer, weights = quantized(model_folder("llama"))
    assert list(weights) == [LAYER]
    difference = dense.write_dense(job(model_folder("llama"), tmp_path), weights, peer)
    written = load_file(tmp_path / DENSE_FILE)
    assert difference < 1e-5
    assert list(written) == [f"{LAYER}.weight"]
    assert torch.equal(written[f"{LAYER}.weight"], weights[LAYER])


def test_weights_that_the_peer_does_not_use_are_refused(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    peer, weights = quantized(model_folder("llama"))
    with pytest.raises(SystemExit, match="logits differ"):
        dense.write_dense(job(model_folder("llama"), tmp_path), {LAYER: -3 * weights[LAYER]}, peer)


def test_a_norm_that_the_peer_changed_is_written_too(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    peer, weights = quantized(model_folder("llama"))
    with torch.no_grad():
        peer.get_parameter("model.norm.weight").mul_(1.5)
    dense.write_dense(job(model_folder("llama"), tmp_path), weights, peer)
    written = load_file(tmp_path / DENSE_FILE)
    assert sorted(written) == [f"{LAYER}.weight", "model.norm.weight"]


def test_bytes_are_those_of_the_saved_tensors(tmp_path: Path) -> None:
    tensors = {
        "a.qweight": torch.zeros(8, 16, dtype=torch.int32),
        "a.scales": torch.zeros(2, 16, dtype=torch.float16),
        "a.g_idx": torch.zeros(64, dtype=torch.int32),
        "a.bias": torch.zeros(16),
        "norm.weight": torch.zeros(16),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    assert dense.stored_bytes(tmp_path) == {"a": {"qweight": 512, "scales": 64, "g_idx": 256}}


def test_jobs_and_answers_survive_their_files(tmp_path: Path) -> None:
    asked = Job(
        model="m",
        tokens="t",
        out="o",
        bits=3,
        group_size=64,
        seed=2,
        threads=1,
        average_bits=3.3,
        options=(2, 4),
    )
    asked.write(tmp_path / "job.json")
    assert Job.read(tmp_path / "job.json") == asked
    answer = Answer(
        quantize_seconds=1.5,
        load_seconds=0.5,
        save_seconds=0.25,
        peak_bytes=10,
        stored_bytes={"a": {"qweight": 512}},
        counted="all of it",
        settings={"bits": 3},
        versions={"torch": "2"},
    )
    answer.write(tmp_path / "answer.json")
    assert Answer.read(tmp_path / "answer.json") == answer


def test_runners_run_without_blockwright() -> None:
    """Their environments do not have it."""
    files = [PEERS / "__init__.py", PEERS / "job.py", *(PEERS / "runners").glob("*.py")]
    imported = {
        name
        for file in [*files, PEERS.parent / "__init__.py"]
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
    }
    assert not [name for name in imported if name and name.startswith("blockwright")]
    allowed = ("benchmarks.peers.job", "benchmarks.peers.runners")
    ours = [name for name in imported if name and name.startswith("benchmarks")]
    assert all(name.startswith(allowed) for name in ours)
