"""Slopes equal the gradients of whole models, and their losses add up to what is measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM

from blockwright.capture.slopes import SAMPLED_ROWS, weight_slopes
from blockwright.evaluate import loss_against, measure, run_to_file
from blockwright.stream import Inputs
from tests.conftest import ModelFolder
from tests.models import VOCAB
from tests.stream.test_equals_own_forward import open_stream

IDS = torch.randint(5, VOCAB, (3, 24), generator=torch.Generator().manual_seed(3))


def whole_loss(kind: str, model: torch.nn.Module, original: torch.nn.Module) -> Tensor:
    """KL in nats per token, or the squared relative error of the last hidden state."""
    with torch.no_grad():
        target = original(input_ids=IDS)
    found = model(input_ids=IDS)
    if kind == "bert":
        reference: Tensor = target.last_hidden_state
        error: Tensor = (found.last_hidden_state - reference).square().sum()
        return error / reference.square().sum()
    log_p, log_q = (out.logits[:, :-1].log_softmax(-1) for out in (target, found))
    kl: Tensor = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    return kl


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_slopes_are_the_gradients_of_the_whole_model(
    kind: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    folders = [model_folder(kind), model_folder(kind, seed=1)]
    inputs = Inputs.of_tokens(IDS)
    original = run_to_file(open_stream(folders[0]), inputs, tmp_path / "original.bin")
    stream = open_stream(folders[1])
    blocks = list(weight_slopes(stream, inputs, tmp_path, loss_against(original)))
    assert [block.index for block in blocks] == [2, 1, 0]

    loading = AutoModel if kind == "bert" else AutoModelForCausalLM
    models = [loading.from_pretrained(f, dtype=torch.float32).eval() for f in folders]
    whole_loss(kind, models[1], models[0]).backward()
    parameters = dict(models[1].named_parameters())
    sites = {site.id: site for site in stream.skeleton.sites}
    assert sum(len(block.slopes) for block in blocks) >= 12
    for block in blocks:
        for name, slope in block.slopes.items():
            gradient = parameters[sites[name].parameter].grad
            expected = gradient.T if sites[name].transposed else gradient
            torch.testing.assert_close(slope.gradient_OI, expected, rtol=1e-3, atol=1e-6)
            assert slope.inputs_NI.shape == (IDS.numel(), sites[name].shape[1])
            assert block.weights[name].shape == sites[name].shape


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_the_losses_of_chunks_add_up_to_what_is_measured(
    kind: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    inputs = Inputs.of_tokens(IDS)
    original, other = (
        run_to_file(open_stream(model_folder(kind, seed=seed)), inputs, tmp_path / f"{seed}.bin")
        for seed in (0, 1)
    )
    loss = loss_against(original)
    total = float(sum(loss(outputs) for outputs in other.outputs()))
    quality = measure(other, original)
    measured = quality.kl_divergence or (quality.relative_error or 0.0) ** 2
    assert total == pytest.approx(measured, rel=1e-4)


def test_of_long_texts_some_rows_are_kept(model_folder: ModelFolder, tmp_path: Path) -> None:
    ids = torch.randint(5, VOCAB, (40, 64), generator=torch.Generator().manual_seed(4))
    inputs = Inputs.of_tokens(ids)
    original = run_to_file(open_stream(model_folder("llama")), inputs, tmp_path / "original.bin")
    stream = open_stream(model_folder("llama", seed=1))
    block = next(weight_slopes(stream, inputs, tmp_path, loss_against(original)))
    for slope in block.slopes.values():
        assert SAMPLED_ROWS <= len(slope.inputs_NI) < 1.5 * SAMPLED_ROWS
