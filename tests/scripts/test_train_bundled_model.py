"""The bundled model's trainer, on a tiny shape: the loop and the recipes are the package's."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from blockwright.cli.demo import bundled_model
from blockwright.registry import recipe_named
from blockwright.texts import load_tokenizer
from blockwright.training import TrainingSettings

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "train_bundled_model.py"


@pytest.fixture(scope="module")
def trainer() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("train_bundled_model", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_it_trains_a_model_that_a_recipe_made_wider(trainer: ModuleType, tmp_path: Path) -> None:
    recipe = recipe_named("sparseift")
    shape = trainer.Shape(
        hidden_size=32, intermediate_size=recipe.inner_width(40), num_blocks=2, vocab_size=4096
    )
    settings = TrainingSettings(steps=2, batch_tokens=128, short_length=64, long_length=64)
    text = torch.arange(3000).remainder(500)
    documents = {"train": [text], "heldout": [text[:600]]}
    tokenizer = load_tokenizer(bundled_model())
    given = (shape, settings, recipe, tokenizer, documents, tmp_path)
    model, log = trainer.trained_model(*given)
    zeros = [
        (linear.weight == 0).float().mean()
        for linear in model.model.layers[0].mlp.children()
        if isinstance(linear, torch.nn.Linear)
    ]
    assert [float(share) for share in zeros] == [0.5] * 3
    assert model.config.intermediate_size == 80
    assert [entry["step"] for entry in log] == [1, 2]
    again, same_log = trainer.trained_model(*given)
    assert same_log == log
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))


def test_its_settings_are_those_of_the_bundled_model(trainer: ModuleType) -> None:
    settings = trainer.training_settings(10_000_000)
    assert settings.steps == 2442
    assert (settings.check_every, settings.length_at(0), settings.length_at(2441)) == (
        61,
        512,
        2048,
    )
    assert settings.rate_at(99) == pytest.approx(2.5e-3, rel=0.01)


def test_a_recipe_needs_a_folder_of_its_own(
    trainer: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["train_bundled_model.py", "--recipe", "bdwp"])
    with pytest.raises(SystemExit):
        trainer.parse_arguments()
    assert "name a folder with --out" in capsys.readouterr().err
