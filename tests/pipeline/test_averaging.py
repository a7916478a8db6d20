"""Means of models: units are brought into one order first."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from blockwright import pipeline
from blockwright.errors import ModelError
from tests.conftest import ModelFolder
from tests.fits import with_tokenizer

IDS = torch.arange(3, 67)[None]
HEADS = 2


@torch.no_grad()
def logits(folder: Path) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found: Tensor = model(input_ids=IDS).logits
    return found


@torch.no_grad()
def changed(folder: Path, out: Path, change: Callable[[Any, torch.Generator], None]) -> Path:
    """A folder with every block of a Llama changed."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    draw = torch.Generator().manual_seed(4)
    for block in model.model.layers:
        change(block, draw)
    model.save_pretrained(out)
    return with_tokenizer(out, out.parent / f"{out.name}-named")


def scramble(block: Any, draw: torch.Generator) -> None:
    """Another order of channels, and of key-value heads with their queries."""
    ffn, attention = block.mlp, block.self_attn
    order = torch.randperm(len(ffn.up_proj.weight), generator=draw)
    for linear in (ffn.up_proj, ffn.gate_proj):
        linear.weight.copy_(linear.weight[order])
    ffn.down_proj.weight.copy_(ffn.down_proj.weight[:, order])
    for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
        rows = linear.weight.unflatten(0, (HEADS, -1))
        linear.weight.copy_(rows.flip(0).flatten(0, 1))
    columns = attention.o_proj.weight.unflatten(1, (HEADS, -1))
    attention.o_proj.weight.copy_(columns.flip(1).flatten(1))


def test_a_scrambled_copy_is_found_again(model_folder: ModelFolder, tmp_path: Path) -> None:
    model = with_tokenizer(model_folder("llama"), tmp_path)
    other = changed(model, tmp_path / "scrambled", scramble)
    torch.testing.assert_close(logits(other), logits(model), rtol=1e-4, atol=1e-4)
    result = pipeline.average((str(model), str(other)), tmp_path / "mean")
    assert result.units == 3 * (96 + HEADS)
    assert result.moved > 0.9 * result.units
    torch.testing.assert_close(logits(result.out), logits(model), rtol=1e-4, atol=1e-4)
    naive = pipeline.average((str(model), str(other)), tmp_path / "naive", align=False)
    assert (naive.units, naive.moved) == (0, 0)
    assert (logits(naive.out) - logits(model)).abs().max() > 0.1


def test_a_mean_is_the_mean_of_every_tensor(model_folder: ModelFolder, tmp_path: Path) -> None:
    model = with_tokenizer(model_folder("llama"), tmp_path)

    def shift(block: Any, draw: torch.Generator) -> None:
        block.mlp.up_proj.weight.add_(0.25)

    other = changed(model, tmp_path / "shifted", shift)
    names = (str(model), str(other), str(other), str(model))
    result = pipeline.average(names, tmp_path / "mean", align=False)
    found, before = (
        AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32) for f in (result.out, model)
    )
    for name, tensor in found.named_parameters():
        expected = before.get_parameter(name) + (0.125 if "up_proj" in name else 0.0)
        torch.testing.assert_close(tensor, expected, msg=name)


def test_models_that_have_no_mean_are_refused(model_folder: ModelFolder, tmp_path: Path) -> None:
    model = with_tokenizer(model_folder("llama"), tmp_path)
    packed = with_tokenizer(model, tmp_path / "packed")
    config = json.loads((packed / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "blockwright", "version": 1, "sites": {}}
    (packed / "config.json").write_text(json.dumps(config), encoding="utf-8")
    wide = model_folder("llama", intermediate_size=64)
    deep = model_folder("llama", num_hidden_layers=2)
    told = {
        wide: "only models of one shape",
        deep: "differ: one has no tensor",
        packed: "codes have no mean",
    }
    for other, reason in told.items():
        with pytest.raises(ModelError, match=reason) as caught:
            pipeline.average((str(model), str(other)), tmp_path / "mean")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "mean").exists()
