"""Captured statistics equal those of hooks on the whole model; a killed sweep resumes."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from blockwright.capture import CapturedBlock, forward_sweep, inputs_path
from blockwright.stream import Inputs
from blockwright.types import SiteKind, Statistic
from tests.conftest import ModelFolder
from tests.stream.test_equals_own_forward import model_inputs, open_stream

NEEDS = (Statistic.INPUT_GRAM, Statistic.INPUT_ABSMAX)


def sweep(folder: Path, work: Path, inputs: Inputs) -> dict[int, CapturedBlock]:
    stream = open_stream(folder)
    return {block.index: block for block in forward_sweep(stream, inputs, work, lambda _: NEEDS)}


def hooked_grams(folder: Path, ids: Tensor) -> dict[str, Tensor]:
    """Grams of every linear's inputs, by forward hooks on the loaded model."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    grams: dict[str, Tensor] = {}

    def keep(name: str) -> object:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].reshape(-1, inputs[0].shape[-1])
            grams[name] = x.T @ x / len(x)

        return hook

    for name, module in model.named_modules():
        module.register_forward_pre_hook(keep(name)) if not list(module.children()) else None
    with torch.no_grad():
        model(input_ids=ids)
    return grams


@pytest.mark.parametrize("kind", ["llama", "gpt2", "phi3", "opt"])
def test_grams_equal_those_of_hooks(kind: str, model_folder: ModelFolder, tmp_path: Path) -> None:
    inputs = model_inputs("causal-lm")
    blocks = sweep(model_folder(kind), tmp_path, inputs)
    expected = hooked_grams(model_folder(kind), inputs.values)
    for block in blocks.values():
        assert block.statistics
        for site, statistics in block.statistics.items():
            assert statistics.tokens == inputs.values.numel()
            gram = statistics.need(Statistic.INPUT_GRAM)
            torch.testing.assert_close(gram, expected[site], rtol=1e-4, atol=1e-6)


def test_sites_that_share_an_input_are_one_group_in_order(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    block = sweep(model_folder("llama"), tmp_path, model_inputs("causal-lm"))[1]
    names = [[site.rpartition(".")[2] for site in group] for group in block.groups]
    assert names == [
        ["q_proj", "k_proj", "v_proj"],
        ["o_proj"],
        ["gate_proj", "up_proj"],
        ["down_proj"],
    ]


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral"])
def test_every_expert_has_its_own_tokens(
    kind: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    inputs = model_inputs("causal-lm")
    stream = open_stream(model_folder(kind))
    per_token = stream.skeleton.config.num_experts_per_tok
    for block in sweep(model_folder(kind), tmp_path, inputs).values():
        experts = [
            site
            for site in stream.skeleton.block_sites(block.index)
            if site.kind is SiteKind.LINEAR and site.expert is not None
        ]
        for tie in {site.tie for site in experts}:
            ids = [site.id for site in experts if site.tie == tie]
            counts = [block.statistics[i].tokens for i in ids if i in block.statistics]
            assert sum(counts) == per_token * inputs.values.numel()


def test_a_killed_sweep_resumes_where_it_was(model_folder: ModelFolder, tmp_path: Path) -> None:
    folder, inputs = model_folder("llama"), model_inputs("causal-lm")
    whole = sweep(folder, tmp_path / "whole", inputs)
    killed = forward_sweep(open_stream(folder), inputs, tmp_path / "killed", lambda _: NEEDS)
    next(killed)
    del killed

    def missing(index: int) -> Collection[Statistic] | None:
        return None if index == 0 else NEEDS

    resumed = {
        block.index: block
        for block in forward_sweep(open_stream(folder), inputs, tmp_path / "killed", missing)
    }
    assert sorted(resumed) == [1, 2]
    for index, block in resumed.items():
        for site, statistics in block.statistics.items():
            gram = whole[index].statistics[site].need(Statistic.INPUT_GRAM)
            assert torch.equal(statistics.need(Statistic.INPUT_GRAM), gram)
    ends = [inputs_path(tmp_path / name, 3).read_bytes() for name in ("whole", "killed")]
    assert ends[0] == ends[1]
