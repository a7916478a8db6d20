"""Output moments equal those of backward hooks on the whole model, and predict the KL."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM

from blockwright.capture import forward_sweep, inputs_path
from blockwright.capture.reverse import (
    hidden_mean_square,
    probe_loss,
    reverse_sweep,
    sampled_label_loss,
)
from blockwright.stream import Inputs, Stem, Stream
from tests.conftest import ModelFolder
from tests.stream.test_equals_own_forward import model_inputs, open_stream


def swept(folder: Path, work: Path, inputs: Inputs) -> tuple[Stream, Stem]:
    """A stream whose forward sweep has run."""
    stream = open_stream(folder)
    for _ in forward_sweep(stream, inputs, work, lambda _: None):
        pass
    return stream, stream.run_stem(inputs, inputs_path(work, 0))


def moments(folder: Path, work: Path, inputs: Inputs, seed: int = 0) -> dict[str, Tensor]:
    stream, stem = swept(folder, work, inputs)
    found: dict[str, Tensor] = {}
    for _, block in reverse_sweep(
        stream, inputs, stem, work, work, sampled_label_loss(seed), (0, 1, 2)
    ):
        found |= block
    return found


@pytest.mark.parametrize("kind", ["llama", "gpt2", "phi3", "gemma3"])
def test_moments_equal_those_of_backward_hooks(
    kind: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    inputs = model_inputs("causal-lm")
    found = moments(model_folder(kind), tmp_path, inputs)
    model = AutoModelForCausalLM.from_pretrained(model_folder(kind), dtype=torch.float32).eval()
    expected: dict[str, Tensor] = {}

    def watch(name: str, module: nn.Module) -> None:
        def hook(_: nn.Module, __: object, output: tuple[Tensor, ...]) -> None:
            g_TO = output[0].reshape(-1, output[0].shape[-1])
            expected[name] = expected.get(name, torch.zeros(())) + g_TO.square().sum(0)

        module.register_full_backward_hook(hook)

    for name, module in model.named_modules():
        if name in found:
            watch(name, module)
    loss = sampled_label_loss(0)
    total = torch.zeros(())
    for batch in inputs.batches():
        total = total + loss(model(input_ids=batch).logits.flatten(0, 1))
    total.backward()
    assert expected
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value / inputs.values.numel(), rtol=1e-3, atol=1e-7)


def test_second_order_kl_predicts_the_measured_one(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    """Small random changes of one weight, over many labels: within a quarter."""
    folder = model_folder("llama")
    generator = torch.Generator().manual_seed(1)
    inputs = Inputs("input_ids", torch.randint(5, 128, (16, 32), generator=generator), 4)
    name = "model.layers.1.mlp.down_proj"
    G_O = torch.stack([moments(folder, tmp_path / str(s), inputs, s)[name] for s in range(4)]).mean(
        0
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    linear = model.get_submodule(name)
    seen: list[Tensor] = []
    linear.register_forward_pre_hook(lambda _, x: seen.append(x[0].flatten(0, 1)))
    with torch.no_grad():
        before = model(input_ids=inputs.values).logits.flatten(0, 1).log_softmax(-1)
        D_OI = 0.1 * linear.weight.std() * torch.randn(linear.weight.shape, generator=generator)
        linear.weight += D_OI
        after = model(input_ids=inputs.values).logits.flatten(0, 1).log_softmax(-1)
    measured = float((before.exp() * (before - after)).sum(-1).mean())
    predicted = 0.5 * float(G_O @ (seen[0] @ D_OI.T).square().mean(0))
    assert predicted == pytest.approx(measured, rel=0.25)


def test_experts_moments_sum_over_their_tokens(model_folder: ModelFolder, tmp_path: Path) -> None:
    """Expert costs add up: moments are sums over routed tokens divided by all tokens."""
    found = moments(model_folder("qwen3_moe"), tmp_path, model_inputs("causal-lm"))
    experts = [site for site in found if "[" in site]
    assert experts
    assert all(torch.isfinite(found[site]).all() for site in found)


def test_a_killed_sweep_resumes_with_the_same_bits(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    inputs = model_inputs("causal-lm")
    folder = model_folder("llama")
    expected = moments(folder, tmp_path / "whole", inputs)
    stream, stem = swept(folder, tmp_path / "killed", inputs)
    work, loss = tmp_path / "killed", sampled_label_loss(0)
    sweep = reverse_sweep(stream, inputs, stem, work, work, loss, (0, 1, 2))
    _, kept = next(sweep)
    del sweep
    stream, stem = swept(folder, tmp_path / "killed", inputs)
    loss = sampled_label_loss(99)  # of no effect: the head has been walked through
    found = dict(kept)
    for _, block in reverse_sweep(stream, inputs, stem, work, work, loss, (0, 1)):
        found |= block
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[site], value) for site, value in expected.items())


def test_probes_measure_the_relative_error_of_an_encoder(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    folder = model_folder("bert")
    generator = torch.Generator().manual_seed(1)
    inputs = Inputs("input_ids", torch.randint(5, 128, (16, 32), generator=generator), 4)
    stream, stem = swept(folder, tmp_path, inputs)
    final = stream.file(inputs_path(tmp_path, len(stream.blocks)), stem)
    loss = probe_loss(0, hidden_mean_square(stream, inputs, stem, final))
    found: dict[str, Tensor] = {}
    for _, block in reverse_sweep(stream, inputs, stem, tmp_path, tmp_path, loss, (0, 1, 2)):
        found |= block
    name = "encoder.layer.2.output.dense"
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    linear = model.get_submodule(name)
    seen: list[Tensor] = []
    linear.register_forward_pre_hook(lambda _, x: seen.append(x[0].flatten(0, 1)))
    with torch.no_grad():
        before = model(input_ids=inputs.values).last_hidden_state
        D_OI = 0.05 * linear.weight.std() * torch.randn(linear.weight.shape, generator=generator)
        linear.weight += D_OI
        after = model(input_ids=inputs.values).last_hidden_state
    measured = float((after - before).square().sum() / before.square().sum())
    predicted = 0.5 * float(found[name] @ (seen[0] @ D_OI.T).square().mean(0))
    assert predicted == pytest.approx(measured, rel=0.25)
