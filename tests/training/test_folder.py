"""A folder in, a folder out, and what ``fit`` makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from blockwright import pipeline
from blockwright.errors import OutputError, TextError, TrainingError
from blockwright.registry import recipe_named
from blockwright.training import Trained, train_folder
from blockwright.types import Budget
from tests.conftest import ModelFolder
from tests.fits import request, with_tokenizer, words
from tests.training.cases import settings


@pytest.fixture
def model(model_folder: ModelFolder, tmp_path: Path) -> Path:
    return with_tokenizer(model_folder("llama", dtype=torch.bfloat16), tmp_path)


def text(folder: Path) -> Path:
    file = folder / "training.txt"
    file.write_text(words(1, 2000), encoding="utf-8")
    return file


def run(model: Path, out: Path, recipe: str = "srste", steps: int = 20) -> Trained:
    found = recipe_named(recipe)
    return train_folder(str(model), out, found, settings(steps=steps), text=text(model.parent))


@pytest.mark.slow
def test_fit_stores_what_it_was_trained_for_without_loss(model: Path, tmp_path: Path) -> None:
    trained = run(model, tmp_path / "sparse")
    assert trained.loss < trained.original_loss
    assert not (tmp_path / "sparse.partial").exists()
    loaded = AutoModelForCausalLM.from_pretrained(trained.out)
    assert loaded.dtype == torch.bfloat16
    kls = []
    for folder, work in ((model, tmp_path / "of-dense"), (trained.out, tmp_path / "of-sparse")):
        asked = request(folder, work, budget=Budget(bits=9.5), candidates=("sparse2of4",))
        kls.append(pipeline.fit(asked).fitted.kl_divergence or 0.0)
    of_dense, of_sparse = kls
    assert of_sparse < 1e-5
    assert of_dense > 0.01


@pytest.mark.slow
def test_the_same_call_resumes_and_writes_the_same_bytes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(model, tmp_path / "whole").out
    with monkeypatch.context() as patch:
        patch.setattr("blockwright.training.folder.train", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(model, tmp_path / "again")
    (tmp_path / "again.partial" / "leftover").mkdir()
    again = run(model, tmp_path / "again").out
    files = sorted(path.name for path in whole.iterdir())
    assert files == sorted(path.name for path in again.iterdir())
    assert all((whole / name).read_bytes() == (again / name).read_bytes() for name in files)


def stopped(*arguments: object, **options: object) -> None:
    raise KeyboardInterrupt


def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    model: Path, tmp_path: Path, model_folder: ModelFolder
) -> None:
    with pytest.raises(TrainingError, match="makes new models"):
        run(model, tmp_path / "out", "sparseift")
    with pytest.raises(OutputError, match="not empty"):
        run(model, tmp_path)
    long = settings(batch_tokens=4096, short_length=4096, long_length=4096)
    recipe = recipe_named("srste")
    with pytest.raises(TrainingError, match="less than one sequence"):
        train_folder(str(model), tmp_path / "out", recipe, long, text=text(tmp_path))
    with pytest.raises(TextError, match="no tokenizer"):
        run(model_folder("llama"), tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()
