"""Groups are seen, not named; a fold changes no output, and is refused where it would."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from blockwright.capture import FoundGroup, find_groups
from tests.conftest import ModelFolder
from tests.models import DECODER, EXPERTS, KINDS, tiny_model
from tests.stream.test_equals_own_forward import model_inputs, open_stream

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
FOUND: dict[str, dict[tuple[str, ...], tuple[tuple[str, ...], tuple[float, ...]]]] = {
    "llama": {
        QKV: (("input_layernorm.weight",), (0.0,)),
        ("mlp.gate_proj", "mlp.up_proj"): (("post_attention_layernorm.weight",), (0.0,)),
    },
    "gemma3": {
        QKV: (("input_layernorm.weight",), (1.0,)),
        ("mlp.gate_proj", "mlp.up_proj"): (("pre_feedforward_layernorm.weight",), (1.0,)),
    },
    "opt": {
        QKV: (("self_attn_layer_norm.weight", "self_attn_layer_norm.bias"), (0.0, 0.0)),
        ("fc1",): (("final_layer_norm.weight", "final_layer_norm.bias"), (0.0, 0.0)),
    },
    "gpt2": {
        ("attn.c_attn",): (("ln_1.weight", "ln_1.bias"), (0.0, 0.0)),
        ("mlp.c_fc",): (("ln_2.weight", "ln_2.bias"), (0.0, 0.0)),
    },
    "gpt_neox": {
        ("attention.query_key_value",): (
            ("input_layernorm.weight", "input_layernorm.bias"),
            (0.0, 0.0),
        ),
        ("mlp.dense_h_to_4h",): (
            ("post_attention_layernorm.weight", "post_attention_layernorm.bias"),
            (0.0, 0.0),
        ),
    },
}
"""Members -> parameters that take the fold, and their offsets."""


def groups_in(folder: Path, work: Path) -> tuple[FoundGroup, ...]:
    """Groups of block 1."""
    stream = open_stream(folder)
    inputs = model_inputs(stream.skeleton.task)
    stem = stream.run_stem(inputs, work / "stem.bin")
    return find_groups(stream, 1, stem, stream.file(work / "stem.bin", stem).read(0, 2))


@pytest.mark.parametrize("kind", FOUND)
def test_groups_are_the_linears_of_one_input_and_the_norm_that_makes_it(
    kind: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    found = groups_in(model_folder(kind), tmp_path)
    assert {g.members: (g.parameters, g.offsets) for g in found} == FOUND[kind]
    assert not any(group.refused for group in found)


@pytest.mark.parametrize("kind", FOUND)
def test_folding_what_was_found_leaves_the_models_own_outputs(
    kind: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    assert change_by_folds(model_folder(kind), tmp_path) < 1e-4


def change_by_folds(folder: Path, work: Path) -> float:
    """Relative change of logits when all groups of block 1 are folded in transformers' model."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = model_inputs("causal-lm").values
    path = open_stream(folder).skeleton.block_path
    with torch.no_grad():
        before = model(input_ids=ids).logits
        for group in groups_in(folder, work):
            fold_by_hand(model, f"{path}.1.", group)
        after = model(input_ids=ids).logits
    return float((after - before).norm() / before.norm())


def fold_by_hand(model: torch.nn.Module, prefix: str, group: FoundGroup) -> None:
    first = model.get_parameter(prefix + group.parameters[0])
    t = torch.linspace(0.3, 3.0, len(first))
    for name, offset in zip(group.parameters, group.offsets, strict=True):
        parameter = model.get_parameter(prefix + name)
        parameter.copy_((offset + parameter) / t - offset)
    for name in group.members:
        weight: Tensor = model.get_parameter(f"{prefix}{name}.weight")
        transposed = type(model.get_submodule(prefix + name)).__name__ == "Conv1D"
        weight.mul_(t[:, None] if transposed else t)


def test_an_input_that_a_router_reads_too_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shared = {"shared_expert_intermediate_size": 32, "moe_intermediate_size": 32}
    fields = DECODER | EXPERTS | shared | {"num_experts": 4}
    monkeypatch.setitem(KINDS, "qwen2_moe", ("Qwen2MoeForCausalLM", fields))
    attention, expert = groups_in(tiny_model("qwen2_moe", tmp_path / "model"), tmp_path)
    assert attention.members == QKV
    assert not attention.refused
    assert "mlp.shared_expert.up_proj" in expert.members
    assert "something else reads the output of post_attention_layernorm" in expert.refused


def test_an_input_that_the_residual_reads_too_is_refused(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    attention, inner = groups_in(model_folder("bert"), tmp_path)
    assert attention.refused == "no norm of the block makes their input"
    assert inner.members == ("intermediate.dense",)
    assert "something else reads the output of attention.output.LayerNorm" in inner.refused


def test_experts_are_in_no_group(model_folder: ModelFolder, tmp_path: Path) -> None:
    assert [group.members for group in groups_in(model_folder("mixtral"), tmp_path)] == [QKV]
