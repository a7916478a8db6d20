"""Everybody's weights are judged alike, and counted as plans are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarks.peers.job import DENSE_FILE
from benchmarks.peers.judging import bits_per_weight, judge, judge_uniform, linear_sites
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from blockwright.errors import UserError
from blockwright.pipeline.measuring import loss_of
from blockwright.pipeline.opening import Run, open_run
from blockwright.progress import SilentProgress
from blockwright.types import Budget, Site, SiteKind
from tests.conftest import ModelFolder
from tests.fits import request, with_tokenizer

PARAMETER = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def opened(model_folder: ModelFolder, tmp_path: Path) -> Run:
    model = with_tokenizer(model_folder("llama"), tmp_path)
    asked = request(model, tmp_path, budget=Budget(bits=16.0), candidates=("int4-g32:gptq",))
    return open_run(asked, SilentProgress())


def write(folder: Path, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir()
    save_file(tensors, folder / DENSE_FILE)
    return folder


def site(name: str, shape: tuple[int, int]) -> Site:
    return Site(id=name, kind=SiteKind.LINEAR, shape=shape, parameter=f"{name}.weight", block=0)


def test_the_originals_own_weights_have_no_divergence(opened: Run, tmp_path: Path) -> None:
    weight = opened.original.parameters.load([PARAMETER])[PARAMETER].float()
    quality = judge(opened, write(tmp_path / "same", {PARAMETER: weight}))
    assert quality.kl_divergence == 0.0
    assert quality.top1_agreement == 1.0


@torch.no_grad()
def test_the_divergence_is_that_of_plain_transformers(opened: Run, tmp_path: Path) -> None:
    noise = torch.randn(96, 64, generator=torch.Generator().manual_seed(0)) / 10
    weight = opened.original.parameters.load([PARAMETER])[PARAMETER].float() + noise
    judged = judge(opened, write(tmp_path / "noisy", {PARAMETER: weight})).kl_divergence

    model = AutoModelForCausalLM.from_pretrained(opened.request.model, dtype=torch.float32)
    ids = opened.texts.heldout.ids
    original = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
    model.load_state_dict({PARAMETER: weight}, strict=False)
    peer = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
    expected = (original.exp() * (original - peer)).sum(-1).mean().item()
    assert judged == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [("model.layers.9.up.weight", (2, 2), "no parameter"), (PARAMETER, (2, 2), r"the original's")],
)
def test_weights_of_another_model_are_refused(
    opened: Run, tmp_path: Path, name: str, shape: tuple[int, int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        judge(opened, write(tmp_path / "other", {name: torch.zeros(shape)}))


def test_our_own_gptq_is_judged_by_the_same_text(opened: Run) -> None:
    bits, quality = judge_uniform(opened, "int4-g32")
    linears = linear_sites(opened)
    assert len(linears) == 3 * 7
    assert bits == pytest.approx(4 + 20 / 32)
    assert 0 < loss_of(quality) < 1


def test_bits_count_everything_that_is_stored() -> None:
    sites = [site("a", (8, 16)), site("b", (4, 16))]
    stored = {"a": {"qweight": 64, "scales": 8}, "b": {"qweight": 32, "scales": 4, "g_idx": 64}}
    assert bits_per_weight(stored, sites) == 8 * (72 + 100) / (128 + 64)


def test_a_linear_left_alone_counts_sixteen_bits() -> None:
    sites = [site("a", (8, 16)), site("b", (8, 16))]
    assert bits_per_weight({"a": {"qweight": 64}}, sites) == (4 + 16) / 2


def test_a_table_does_not_count_as_a_linear() -> None:
    with pytest.raises(UserError, match="lm_head"):
        bits_per_weight({"lm_head": {"qweight": 64}}, [site("a", (8, 16))])
