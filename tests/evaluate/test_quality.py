"""Streamed quality equals what the whole model gives in one forward."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from blockwright.evaluate import measure, run_to_file
from blockwright.evaluate.quality import next_tokens
from blockwright.stream import Inputs
from tests.conftest import ModelFolder
from tests.models import VOCAB
from tests.stream.test_equals_own_forward import open_stream

IDS = torch.randint(5, VOCAB, (3, 40), generator=torch.Generator().manual_seed(3))


def log_probabilities(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=IDS).logits
    return logits[:, :-1].double().log_softmax(-1)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_perplexity_kl_and_agreement_equal_those_of_whole_models(
    kind: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    folders = [model_folder(kind), model_folder(kind, seed=1)]
    inputs = Inputs.of_tokens(IDS)
    original, other = (
        run_to_file(open_stream(folder), inputs, tmp_path / f"{index}.bin")
        for index, folder in enumerate(folders)
    )
    quality = measure(other, original)
    log_p, log_q = map(log_probabilities, folders)
    labels = IDS[:, 1:, None]
    assert quality.tokens == labels.numel()
    assert quality.perplexity == pytest.approx(math.exp(-log_q.gather(-1, labels).mean()), rel=1e-4)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    assert quality.kl_divergence == pytest.approx(float(kl), rel=1e-4)
    same = (log_p.argmax(-1) == log_q.argmax(-1)).double().mean()
    assert quality.top1_agreement == pytest.approx(float(same))


def test_a_model_does_not_differ_from_itself(model_folder: ModelFolder, tmp_path: Path) -> None:
    inputs = Inputs.of_tokens(IDS)
    one = run_to_file(open_stream(model_folder("llama")), inputs, tmp_path / "a.bin")
    quality = measure(one, one)
    assert quality.kl_divergence == 0
    assert quality.top1_agreement == 1


def test_encoders_are_measured_on_hidden_states(model_folder: ModelFolder, tmp_path: Path) -> None:
    inputs = Inputs.of_tokens(IDS)
    one = run_to_file(open_stream(model_folder("bert")), inputs, tmp_path / "a.bin")
    two = run_to_file(open_stream(model_folder("bert", seed=1)), inputs, tmp_path / "b.bin")
    assert measure(one, one).relative_error == 0
    assert measure(one, one).cosine == pytest.approx(1)
    different = measure(two, one).relative_error
    assert different is not None
    assert different > 0.1


def test_last_position_of_a_row_has_no_label() -> None:
    assert next_tokens(torch.tensor([[1, 2, 3], [4, 5, 6]])).tolist() == [2, 3, -1, 5, 6, -1]
