"""The skeleton of every architecture has the right blocks, sites, tables and sizes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from blockwright.anatomy import Skeleton, build_skeleton, find_sites
from blockwright.errors import ModelError, UserError
from blockwright.types import Site, SiteKind, TableRole
from tests.conftest import ModelFolder
from tests.models import BLOCKS, HIDDEN, INNER, KINDS, VOCAB

KV, FUSED = HIDDEN // 2, 2 * HIDDEN
QKVO = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KV, HIDDEN),
    "self_attn.v_proj": (KV, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
}
GATED = {
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}


def experts(inner: int) -> dict[str, tuple[int, int]]:
    up = {f"mlp.experts.gate_up_proj[{e}]": (2 * inner, HIDDEN) for e in range(4)}
    return up | {f"mlp.experts.down_proj[{e}]": (HIDDEN, inner) for e in range(4)}


@dataclass(frozen=True)
class Expected:
    """What a block's linears and the tables must be."""

    task: str
    path: str
    linears: dict[str, tuple[int, int]]
    roles: tuple[TableRole, ...] = (TableRole.EMBEDDING, TableRole.HEAD)


TIED = (TableRole.TIED,)
CAUSAL = "causal-lm"
EXPECTED = {
    "llama": Expected(CAUSAL, "model.layers", QKVO | GATED),
    "qwen3": Expected(CAUSAL, "model.layers", QKVO | GATED),
    "mistral": Expected(CAUSAL, "model.layers", QKVO | GATED),
    "gemma3": Expected(CAUSAL, "model.layers", QKVO | GATED, TIED),
    "phi3": Expected(
        CAUSAL,
        "model.layers",
        {
            "self_attn.o_proj": (HIDDEN, HIDDEN),
            "self_attn.qkv_proj": (2 * HIDDEN, HIDDEN),
            "mlp.gate_up_proj": (2 * INNER, HIDDEN),
            "mlp.down_proj": (HIDDEN, INNER),
        },
    ),
    "gpt2": Expected(
        CAUSAL,
        "transformer.h",
        {
            "attn.c_attn": (3 * HIDDEN, HIDDEN),
            "attn.c_proj": (HIDDEN, HIDDEN),
            "mlp.c_fc": (INNER, HIDDEN),
            "mlp.c_proj": (HIDDEN, INNER),
        },
        TIED,
    ),
    "gpt_neox": Expected(
        CAUSAL,
        "gpt_neox.layers",
        {
            "attention.query_key_value": (3 * HIDDEN, HIDDEN),
            "attention.dense": (HIDDEN, HIDDEN),
            "mlp.dense_h_to_4h": (INNER, HIDDEN),
            "mlp.dense_4h_to_h": (HIDDEN, INNER),
        },
    ),
    "opt": Expected(
        CAUSAL,
        "model.decoder.layers",
        {
            **{f"self_attn.{n}": (HIDDEN, HIDDEN) for n in ("k_proj", "v_proj", "q_proj")},
            "self_attn.out_proj": (HIDDEN, HIDDEN),
            "fc1": (INNER, HIDDEN),
            "fc2": (HIDDEN, INNER),
        },
        TIED,
    ),
    "bert": Expected(
        "encoder",
        "encoder.layer",
        {
            **{f"attention.self.{n}": (HIDDEN, HIDDEN) for n in ("query", "key", "value")},
            "attention.output.dense": (HIDDEN, HIDDEN),
            "intermediate.dense": (INNER, HIDDEN),
            "output.dense": (HIDDEN, INNER),
        },
        (TableRole.EMBEDDING,),
    ),
    "qwen3_moe": Expected(CAUSAL, "model.layers", QKVO | experts(32)),
    "mixtral": Expected(CAUSAL, "model.layers", QKVO | experts(INNER)),
    "vit": Expected(
        "vision",
        "layers",
        {
            **{f"attention.{n}": (HIDDEN, HIDDEN) for n in ("q_proj", "k_proj", "v_proj")},
            "attention.o_proj": (HIDDEN, HIDDEN),
            "mlp.fc1": (INNER, HIDDEN),
            "mlp.fc2": (HIDDEN, INNER),
        },
        (),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_linears_and_tables(kind: str, model_folder: ModelFolder) -> None:
    skeleton, expected = build_skeleton(model_folder(kind)), EXPECTED[kind]
    assert (skeleton.task, skeleton.block_path) == (expected.task, expected.path)
    assert skeleton.num_blocks == BLOCKS
    assert tuple(site.role for site in skeleton.tables) == expected.roles
    assert all(site.shape == (VOCAB, HIDDEN) for site in skeleton.tables)
    for index in range(BLOCKS):
        *linears, whole = skeleton.block_sites(index)
        prefix = f"{expected.path}.{index}."
        assert {s.id.removeprefix(prefix): s.shape for s in linears} == expected.linears
        assert all(s.kind is SiteKind.LINEAR and s.block == index for s in linears)
        assert (whole.id + ".", whole.kind) == (prefix, SiteKind.BLOCK)
        assert whole.weights == sum(o * i for o, i in expected.linears.values())
    assert skeleton.sites == find_sites(skeleton.model)
    assert len({site.id for site in skeleton.sites}) == len(skeleton.sites)
    assert skeleton.linear_weights == BLOCKS * whole.weights


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_and_bytes_are_split_without_rest(kind: str, model_folder: ModelFolder) -> None:
    skeleton = build_skeleton(model_folder(kind))
    in_blocks = [n for i in range(BLOCKS) for n in skeleton.parameters_of_block(i)]
    assert sorted([*in_blocks, *skeleton.stem_head_parameters]) == sorted(skeleton.parameters)
    model = skeleton.model
    persistent = {id(t): t for t in model.state_dict(keep_vars=True).values()}
    block_bytes = sum(skeleton.parameters[name].nbytes for name in in_blocks)
    total = sum(t.nbytes for t in persistent.values())
    assert skeleton.stem_bytes + skeleton.head_bytes + block_bytes == total
    assert all(t.is_meta for t in persistent.values())
    for site in skeleton.sites:
        if site.kind is not SiteKind.BLOCK:
            stack = skeleton.parameters[site.parameter]
            assert site.weights * (len(stack) if site.expert is not None else 1) == stack.numel()
            assert site.bias is None or site.bias in skeleton.parameters


def weight_of(site: Site, model: nn.Module) -> Tensor:
    weight = model.get_parameter(site.parameter).detach()
    weight = weight if site.expert is None else weight[site.expert]
    return weight.T if site.transposed else weight


@pytest.mark.parametrize("kind", KINDS)
def test_a_site_is_out_by_in(kind: str, model_folder: ModelFolder) -> None:
    """Its weight and bias reproduce what the module computes."""
    skeleton = build_skeleton(model_folder(kind))
    auto = transformers.AutoModelForCausalLM if skeleton.task == CAUSAL else transformers.AutoModel
    model = auto.from_pretrained(model_folder(kind))
    for site in skeleton.block_sites(1):
        if site.kind is SiteKind.LINEAR and site.expert is None:
            x = torch.randn(5, site.shape[1], generator=torch.Generator().manual_seed(1))
            bias = model.get_parameter(site.bias).detach() if site.bias else 0.0
            expected = x @ weight_of(site, model).T + bias
            assert torch.allclose(model.get_submodule(site.module)(x), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral"])
def test_expert_sites_are_the_matrices_of_one_expert(kind: str, model_folder: ModelFolder) -> None:
    skeleton = build_skeleton(model_folder(kind))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        model_folder(kind), experts_implementation="eager"
    )
    sites = {site.id: site for site in skeleton.block_sites(0)}
    module = model.get_submodule("model.layers.0.mlp.experts")
    x = torch.randn(6, HIDDEN, generator=torch.Generator().manual_seed(1))
    for expert in range(4):
        up = sites[f"model.layers.0.mlp.experts.gate_up_proj[{expert}]"]
        down = sites[f"model.layers.0.mlp.experts.down_proj[{expert}]"]
        assert (up.tie, down.tie) == (up.parameter, down.parameter)
        gate, value = (x @ weight_of(up, model).T).chunk(2, dim=-1)
        expected = (module.act_fn(gate) * value) @ weight_of(down, model).T
        chosen = torch.full((6, 1), expert)
        assert torch.allclose(module(x, chosen, torch.ones(6, 1)), expected, atol=1e-5)


class TransposedExperts(nn.Module):
    """Experts stored [expert, in, out] with biases, as transformers' interface declares them."""

    def __init__(self) -> None:
        super().__init__()
        self.is_transposed, self.has_gate, self.has_bias = True, True, True
        self.gate_up_proj = nn.Parameter(torch.empty(2, 8, 20))
        self.gate_up_proj_bias = nn.Parameter(torch.empty(2, 20))


def test_transposed_experts_with_bias() -> None:
    from blockwright.anatomy.sites import block_sites  # noqa: PLC0415

    first, *_ = block_sites(nn.ModuleDict({"experts": TransposedExperts()}), "b.0", 0)
    assert (first.id, first.shape) == ("b.0.experts.gate_up_proj[0]", (20, 8))
    assert first.transposed
    assert first.bias == "b.0.experts.gate_up_proj_bias"


def test_tied_table_names_both_parameters(model_folder: ModelFolder) -> None:
    (table,) = build_skeleton(model_folder("gpt2")).tables
    assert (table.parameter, table.tied_to) == ("transformer.wte.weight", ("lm_head.weight",))
    untied = build_skeleton(model_folder("gpt2", tie_word_embeddings=False)).tables
    assert [t.parameter for t in untied] == ["transformer.wte.weight", "lm_head.weight"]


def test_attention_is_sdpa_and_experts_are_eager(model_folder: ModelFolder) -> None:
    config = build_skeleton(model_folder("mixtral")).model.config
    assert (config._attn_implementation, config._experts_implementation) == ("sdpa", "eager")


def config_folder(folder: Path, **fields: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def test_missing_folder_and_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        build_skeleton(tmp_path / "gone")
    with pytest.raises(ModelError, match=r"no config\.json"):
        build_skeleton(tmp_path)


REMOTE = {"AutoConfig": "custom.CustomConfig", "AutoModelForCausalLM": "custom.CustomModel"}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown type": ({"model_type": "no-such-model"}, "cannot be used"),
    "no type": ({}, "cannot be used"),
    "remote code": ({"model_type": "custom", "auto_map": REMOTE}, "--trust-remote-code"),
    "encoder-decoder": ({"model_type": "t5"}, "encoder-decoder"),
    "multi-modal": ({"model_type": "gemma3"}, r"wraps several models \(text_config, vision_con"),
    "compressed": (
        {"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}},
        "already compressed by gptq",
    ),
    "audio": ({"model_type": "wav2vec2", "num_hidden_layers": 2}, "takes input_values"),
    "shared layers": (
        {"model_type": "albert", "num_hidden_layers": 12, "architectures": ["AlbertModel"]},
        "only models with one block per layer",
    ),
    "wrong value": (
        {"model_type": "llama", "hidden_size": 64, "num_attention_heads": "many"},
        "num_attention_heads.*expected int",
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_handled_is_refused_in_one_line(reason: str, tmp_path: Path) -> None:
    fields, message = REFUSED[reason]
    with pytest.raises(UserError, match=message) as caught:
        build_skeleton(config_folder(tmp_path, **fields))
    assert "\n" not in str(caught.value)


def test_unreadable_config_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be used") as caught:
        build_skeleton(tmp_path)
    assert "\n" not in str(caught.value)


CUSTOM = """
from transformers import LlamaConfig, LlamaForCausalLM

class CustomConfig(LlamaConfig):
    model_type = "custom"

class CustomModel(LlamaForCausalLM):
    config_class = CustomConfig
"""


def test_remote_code_runs_only_when_trusted(
    model_folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = tmp_path / "modules"
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(modules))
    monkeypatch.syspath_prepend(str(modules))
    folder = tmp_path / "model"
    folder.mkdir()
    config = json.loads((model_folder("llama") / "config.json").read_text())
    config |= {"model_type": "custom", "auto_map": REMOTE, "architectures": ["CustomModel"]}
    config_folder(folder, **config)
    (folder / "custom.py").write_text(CUSTOM)
    with pytest.raises(ModelError, match="--trust-remote-code"):
        build_skeleton(folder)
    assert not modules.exists()
    skeleton = build_skeleton(folder, trust_remote_code=True)
    assert isinstance(skeleton, Skeleton)
    assert type(skeleton.model).__name__ == "CustomModel"
    assert (skeleton.task, skeleton.num_blocks) == (CAUSAL, BLOCKS)
