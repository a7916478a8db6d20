"""Attention and FFN are told apart by what blocks compute; so are the channels of an FFN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blockwright.anatomy import FoundPart, find_parts
from blockwright.anatomy.sites import block_sites
from blockwright.types import PartRole, SiteKind
from tests.models import DECODER, EXPERTS, KINDS, tiny_model
from tests.stream.test_equals_own_forward import model_inputs, open_stream

MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "phi": ("PhiForCausalLM", DECODER | {"num_key_value_heads": 4}),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        DECODER
        | EXPERTS
        | {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
    ),
    "bloom": (
        "BloomForCausalLM",
        {"vocab_size": 128, "hidden_size": 64, "n_layer": 3, "n_head": 4, "pad_token_id": 0},
    ),
}
LEFT_OUT: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "llama": (("self_attn",), ("mlp",)),
    "qwen3": (("self_attn",), ("mlp",)),
    "mistral": (("self_attn",), ("mlp",)),
    "gemma3": (("self_attn",), ("mlp",)),
    "phi3": (("self_attn",), ("mlp",)),
    "gpt2": (("attn",), ("mlp",)),
    "gpt_neox": (("attention",), ("mlp",)),
    "opt": (("self_attn",), ("fc1", "fc2")),
    "bert": (("attention.self", "attention.output.dense"), ("intermediate", "output.dense")),
    "vit": (("attention",), ("mlp",)),
    "qwen3_moe": (("self_attn",), ("mlp",)),
    "mixtral": (("self_attn",), ("mlp",)),
    "phi": (("self_attn",), ("mlp",)),
    "qwen2_moe": (("self_attn",), ("mlp",)),
    "bloom": ((), ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")),
}
"""Modules of attention and of the FFN that are left out when these are dropped."""
EXPERT_KINDS = ("qwen3_moe", "mixtral", "qwen2_moe")


def parts_in(kind: str, work: Path) -> tuple[FoundPart, ...]:
    """Parts of block 1."""
    stream = open_stream(tiny_model(kind, work / "model"))
    inputs = model_inputs(stream.skeleton.task)
    stem = stream.run_stem(inputs, work / "stem.bin")
    hidden = stream.file(work / "stem.bin", stem).read(0, 2)
    linears = [s for s in stream.skeleton.block_sites(1) if s.kind is SiteKind.LINEAR]
    prefix = f"{stream.skeleton.block_path}.1."
    return find_parts(stream.block(1), prefix, linears, stem.calls[0][1].run, hidden)


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_every_block_has_attention_and_an_ffn(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, described in MORE.items():
        monkeypatch.setitem(KINDS, name, described)
    attention, ffn = parts_in(kind, tmp_path)
    assert (attention.role, ffn.role) == (PartRole.ATTENTION, PartRole.FFN)
    left_out = tuple(tuple(m.path for m in part.absent) for part in (attention, ffn))
    assert left_out == LEFT_OUT[kind]
    assert [module.silent for module in ffn.absent][-1:] == [True]
    assert attention.writes_all is (kind != "bert")
    assert ("nothing can stand for the attention" in attention.refused) is (kind == "bloom")
    assert (ffn.channels is None) is (kind in EXPERT_KINDS)
    assert (ffn.not_narrower == "experts keep their width") is (kind in EXPERT_KINDS)


class Toy(nn.Module):
    """Tokens are averaged, then an FFN whose gate and up rows take turns."""

    def __init__(self, *, normed: bool = False, joined: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix, self.gate_up = nn.Linear(8, 8), nn.Linear(8, 32)
        self.down = nn.Linear(16, 8)
        self.norm = nn.LayerNorm(16) if normed else nn.Identity()
        self.joined = joined

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mix(x.cumsum(1))
        x = x + (0 if self.joined else mixed)
        rows = self.gate_up(x).unflatten(-1, (-1, 2))
        inner = torch.sigmoid(rows[..., 0]) * rows[..., 1] * (mixed[..., :1] if self.joined else 1)
        added: Tensor = self.down(self.norm(inner))
        return x + added


def toy_parts(toy: Toy) -> tuple[FoundPart, ...]:
    linears = [s for s in block_sites(toy, "b.0", 0) if s.kind is SiteKind.LINEAR]
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    return find_parts(toy, "b.0.", linears, lambda block, hidden: block(hidden), x)


def test_interleaved_rows_are_recognised() -> None:
    mix, ffn = toy_parts(Toy())
    assert (mix.role, mix.members) == (PartRole.ATTENTION, ("mix",))
    assert ffn.members == ("gate_up", "down")
    assert ffn.channels is not None
    assert ffn.channels.readers == {"gate_up": (2, True)}
    assert ffn.channels.rows("gate_up", [1, 3]) == [2, 3, 6, 7]


def test_channels_that_a_norm_ties_together_are_refused_by_name() -> None:
    _, ffn = toy_parts(Toy(normed=True))
    assert ffn.channels is None
    assert ffn.not_narrower == "the rows of gate_up do not belong to single inputs of down"


def test_a_block_whose_linears_all_need_each_other_has_no_parts() -> None:
    assert toy_parts(Toy(joined=True)) == ()
