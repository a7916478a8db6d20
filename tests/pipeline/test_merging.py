"""Adapters of peft's files: those of others merge, ours are loaded by peft."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from blockwright import pipeline
from blockwright.errors import AdapterError
from blockwright.formats import FormatLinear
from blockwright.types import Budget, Preset
from tests.conftest import ModelFolder
from tests.fits import request, with_tokenizer
from tests.pipeline.conftest import fit_here
from tests.pipeline.test_heal import asked

IDS = torch.arange(5, 37)[None]
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
"""peft asks transformers for it by its old name."""


@pytest.fixture(scope="module")
def folders(
    model_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """An original, and what was fitted of it: two kinds of host, and dense ones."""
    work = tmp_path_factory.mktemp("merged")
    model = with_tokenizer(model_folder("llama"), work)
    fit = request(model, work, candidates=("int3-g32:rtn",), budget=Budget(bits=6.0))
    return model, fit_here(replace(fit, preset=Preset.FAST)).out


def trained_elsewhere(model: Path, folder: Path, config: Any) -> Path:
    """A peft adapter whose every number is random."""
    torch.manual_seed(0)
    made = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.requires_grad and "magnitude" not in name:
                parameter.copy_(0.02 * torch.randn_like(parameter))
    made.save_pretrained(folder)
    return folder


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model.eval()(input_ids=IDS).logits
    return found


def dequantized(original: Path, fitted: Path) -> Any:
    """The fitted model with dense weights."""
    packed: Any = AutoModelForCausalLM.from_pretrained(fitted, dtype=torch.float32)
    dense = AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32)
    with torch.no_grad():
        for path, module in packed.named_modules():
            if isinstance(module, FormatLinear):
                target = dense.get_submodule(path)
                assert isinstance(target, nn.Linear)
                target.weight.copy_(module.dequantize())
    return dense


LORA = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])
MISS = peft.MissConfig(r=4, target_modules=["q_proj", "down_proj"])


@pytest.mark.parametrize(
    "config",
    [pytest.param(LORA, id="lora"), pytest.param(MISS, id="miss", marks=pytest.mark.slow)],
)
def test_an_adapter_trained_elsewhere_gives_what_peft_gives(
    config: Any, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    original, fitted = folders
    adapter = trained_elsewhere(original, tmp_path / "adapter", config)
    result = pipeline.merge(str(fitted), adapter, tmp_path / "out")
    assert result.hosts == 6
    expected = peft.PeftModel.from_pretrained(dequantized(original, fitted), adapter)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    unhealed = AutoModelForCausalLM.from_pretrained(fitted, dtype=torch.float32)
    difference = (logits(merged) - logits(expected)).abs().max()
    effect = (logits(unhealed) - logits(expected)).abs().max()
    assert difference < 0.02 * effect


@pytest.mark.slow
def test_a_dense_model_takes_an_adapter_into_its_weights(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    adapter = trained_elsewhere(folders[0], tmp_path / "adapter", LORA)
    result = pipeline.merge(str(folders[0]), adapter, tmp_path / "out")
    assert (result.hosts, result.beside) == (6, 0)
    base = AutoModelForCausalLM.from_pretrained(folders[0], dtype=torch.float32)
    expected = logits(peft.PeftModel.from_pretrained(base, adapter))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert (logits(merged) - expected).abs().max() <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora@rank=4", "blocklora@rank=4"])
def test_our_adapters_are_loaded_by_peft_and_merge_to_the_same(
    name: str, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    wanted = asked(folders, tmp_path, adapter=name, steps=4, save_adapter=tmp_path / "saved")
    healed = pipeline.heal(wanted)
    again = pipeline.merge(str(folders[1]), tmp_path / "saved", tmp_path / "again")
    assert again.size_bytes == healed.size_bytes
    one, other = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for folder in (healed.out, again.out)
    )
    assert (logits(one) - logits(other)).abs().max() <= 1e-4
    base = dequantized(*folders)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "saved")
    effect = (logits(dequantized(*folders)) - logits(theirs)).abs().max()
    assert (logits(theirs) - logits(one)).abs().max() < 0.02 * effect


@pytest.mark.slow
def test_adapters_that_cannot_be_merged_are_refused(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    def refusal(adapter: Path, model: Path = folders[1]) -> str:
        with pytest.raises(AdapterError) as caught:
            pipeline.merge(str(model), adapter, tmp_path / "out")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "cannot be read" in refusal(tmp_path / "none")
    dora = peft.LoraConfig(r=4, use_dora=True, target_modules=["q_proj"])
    assert "supports dense hosts" in refusal(trained_elsewhere(folders[0], tmp_path / "dora", dora))
    ia3 = peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[])
    assert "kind IA3" in refusal(trained_elsewhere(folders[0], tmp_path / "ia3", ia3))
    broken = trained_elsewhere(folders[0], tmp_path / "broken", LORA)
    config = json.loads((broken / "adapter_config.json").read_text(encoding="utf-8"))
    config["r"] = 8
    (broken / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert "does not fit" in refusal(broken)
