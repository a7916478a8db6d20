"""Text that a model writes itself: drawn from its own distribution, resumable batch by batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from blockwright.errors import ModelError
from blockwright.evaluate import BATCH_DOCUMENTS, Loading, Sampling, sample_documents
from blockwright.evaluate.sampler import first_tokens, sample
from tests.conftest import ModelFolder
from tests.models import random_model


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample_without_cache(model: Any, start_BS: Tensor, length: int, seed: int) -> Tensor:
    """The plain twin: the whole prefix again for every token."""
    generator, ids = seeded(seed), start_BS
    while ids.shape[1] < length:
        with torch.no_grad():
            probabilities = model(input_ids=ids, use_cache=False).logits[:, -1].softmax(-1)
        ids = torch.cat([ids, torch.multinomial(probabilities, 1, generator=generator)], dim=1)
    return ids


class Fixed:
    """A model that always says the same; it remembers how much it was shown at a time."""

    def __init__(self, probabilities: list[float]) -> None:
        self.logits = torch.tensor(probabilities).log()
        self.shown: list[int] = []

    def __call__(self, *, input_ids: Tensor, past_key_values: Any, use_cache: bool) -> Any:
        self.shown.append(input_ids.shape[1])
        logits = self.logits.expand(*input_ids.shape, -1)
        return SimpleNamespace(logits=logits, past_key_values="cache")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
def test_it_is_the_plain_loop_with_a_cache(kind: str) -> None:
    model = random_model(kind)
    start = torch.tensor([[1], [7], [9]])
    found = sample(model, start, 24, seeded(3), lambda _: None)
    assert torch.equal(found, sample_without_cache(model, start, 24, seed=3))


def test_tokens_come_as_often_as_their_probability_says() -> None:
    expected = [0.5, 0.3, 0.15, 0.05]
    found = sample(Fixed(expected), torch.zeros(50, 1).long(), 401, seeded(), lambda _: None)
    frequencies = torch.bincount(found[:, 1:].flatten(), minlength=4) / 20_000
    torch.testing.assert_close(frequencies, torch.tensor(expected), atol=0.01, rtol=0)


def test_only_new_tokens_are_shown_and_all_are_told() -> None:
    model = Fixed([0.5, 0.5])
    told: list[int] = []
    sample(model, torch.zeros(3, 2).long(), 21, seeded(), told.append)
    assert model.shown == [2] + [1] * 18
    assert sum(told) == 3 * 21


def test_after_an_end_a_new_document_is_opened() -> None:
    found = sample(
        Fixed([0.4, 0.2, 0.4]), torch.ones(4, 1).long(), 100, seeded(), lambda _: None, (0, 1)
    )
    after = found[:, 1:][found[:, :-1] == 0]
    assert len(after) > 20
    assert (after == 1).all()


def test_documents_start_as_the_tokenizer_starts_them_or_at_random() -> None:
    assert first_tokens([5, 6], 3, 100, seeded()).tolist() == [[5, 6]] * 3
    drawn = first_tokens([], 400, 100, seeded())
    assert drawn.shape == (400, 1)
    assert len(set(drawn.flatten().tolist())) > 80


@pytest.mark.slow
def test_finished_batches_are_kept_and_the_others_do_not_depend_on_them(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    sampling = Sampling(documents=BATCH_DOCUMENTS + 2, length=10, start=(1,), end=None, seed=5)
    kept = torch.full((BATCH_DOCUMENTS, 10), 3)
    save_file({"ids": kept}, tmp_path / "0000.safetensors")
    told: list[int] = []
    loading = Loading(folder=model_folder("llama"), task="causal-lm")
    found = sample_documents(loading, sampling, tmp_path, told.append)
    start = torch.ones(2, 1).long()
    generator = seeded(sampling.batch_seed(1))
    expected = sample(random_model("llama"), start, 10, generator, lambda _: None)
    assert torch.equal(found, torch.cat([kept, expected]))
    assert sum(told) == found.numel()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "0000.safetensors",
        "0001.safetensors",
    ]


def test_seeds_differ_by_batch_and_by_seed() -> None:
    sampling = Sampling(documents=1, length=10, start=(1,), end=None, seed=5)
    seeds = [replace(sampling, seed=s).batch_seed(i) for s in range(10) for i in range(10)]
    assert len(set(seeds)) == 100


def test_a_process_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockwright.evaluate.sampled.CHILD", "no_such_module")
    sampling = Sampling(documents=1, length=10, start=(1,), end=None, seed=5)
    loading = Loading(folder=tmp_path / "absent", task="causal-lm")
    with pytest.raises(ModelError, match=r"give --calibration: .*no_such_module") as caught:
        sample_documents(loading, sampling, tmp_path, lambda _: None)
    assert "\n" not in str(caught.value)
