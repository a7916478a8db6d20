"""Folders without the attention or the FFN of some blocks: they equal the model with those at zero,
generate with a cache, pad, and save again.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, StaticCache

import blockwright  # noqa: F401 - makes transformers know the folders
from blockwright.assemble import Layout, assemble
from blockwright.checkpoint import Checkpoint
from blockwright.pipeline.opening import open_run
from blockwright.pipeline.parting import parts_of
from blockwright.pipeline.proving import open_fitted
from blockwright.progress import SilentProgress
from blockwright.types import Part, PartRole, Site
from tests.conftest import ModelFolder
from tests.fits import request, tiny_tokenizer, with_tokenizer
from tests.stream.test_equals_own_forward import model_inputs, streamed

KINDS = ("llama", "qwen3", "gemma3", "phi3", "gpt2", "opt", "gpt_neox", "qwen3_moe")
GONE = {(0, PartRole.ATTENTION), (1, PartRole.FFN), (2, PartRole.ATTENTION)}
"""The cache's length is read from layer 0; block 2 of Gemma slides."""
ALL_TOKENS = {(1, PartRole.ATTENTION)}
"""In Gemma the only block that sees all tokens."""
Chosen = Collection[tuple[int, PartRole]]


def found_parts(model: Path, work: Path) -> tuple[Part, ...]:
    candidates = ("drop", "int8:rtn")
    return parts_of(open_run(request(model, work, candidates=candidates), SilentProgress()))


def write_without(
    model: Path, parts: tuple[Part, ...], out: Path, kept: Collection[int] = range(3)
) -> tuple[Part, ...]:
    """A folder without these parts and blocks; nothing is packed."""

    def nothing(site: Site) -> dict[str, torch.Tensor]:
        raise AssertionError(site.id)

    run = open_run(request(model, out.parent, candidates=("drop",)), SilentProgress())
    layout = Layout(run.skeleton, {}, list(kept), dropped=parts)
    assemble(layout, run.original.parameters, Checkpoint.open(model), nothing, out)
    return parts


def folder_without(
    kind: str, gone: Chosen, model_folder: ModelFolder, work: Path, kept: Collection[int] = range(3)
) -> tuple[Path, tuple[Part, ...]]:
    model = with_tokenizer(model_folder(kind), work)
    parts = tuple(p for p in found_parts(model, work) if (p.site.block, p.role) in gone)
    write_without(model, parts, work / "out", kept)
    return work / "out", parts


def load(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()


def zeroed(model: Path, parts: tuple[Part, ...]) -> Any:
    """The original with the linears of some parts at zero, biases included."""
    original = load(model)
    with torch.no_grad():
        for site in (member for part in parts for member in part.members):
            for name in (site.parameter, site.bias):
                if name is not None:
                    original.get_parameter(name).zero_()
    return original


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_model_with_the_part_at_zero_and_generates_with_a_cache_and_pads(
    kind: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    out, parts = folder_without(kind, GONE, model_folder, tmp_path)
    assert len(parts) == 3
    loaded, reference = load(out), zeroed(tmp_path / "model", parts)
    assert sum(p.numel() for p in loaded.parameters()) < sum(
        p.numel() for p in reference.parameters()
    )
    tokenizer = tiny_tokenizer()
    texts = ("ab cd", "a text that is longer than the sliding window of some")
    batch = tokenizer(list(texts), return_tensors="pt", padding=True)
    seen = batch["attention_mask"].bool()
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(**batch).logits[seen], reference(**batch).logits[seen], rtol=1e-4, atol=1e-5
        )
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    together = loaded.generate(**batch, **options)
    for text, tokens in zip(texts, together, strict=True):
        alone = tokenizer(text, return_tensors="pt")
        cached = loaded.generate(**alone, **options)
        assert torch.equal(tokens[-6:], cached[0, -6:])
        assert torch.equal(cached, reference.generate(**alone, **options, use_cache=False))


@pytest.mark.parametrize("kind", ["llama", "gemma3", "gpt2"])
def test_beams_and_a_cache_of_fixed_length_work(
    kind: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    out, parts = folder_without(kind, ALL_TOKENS, model_folder, tmp_path)
    loaded, reference = load(out), zeroed(tmp_path / "model", parts)
    prompt = tiny_tokenizer()("another prompt of some length", return_tensors="pt")
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    beams = loaded.generate(**prompt, **options, num_beams=3)
    assert torch.equal(beams, reference.generate(**prompt, **options, num_beams=3))
    cache = StaticCache(config=loaded.config, max_cache_len=64)
    fixed = loaded.generate(**prompt, **options, past_key_values=cache)
    assert torch.equal(fixed, reference.generate(**prompt, **options))


@pytest.mark.parametrize("kind", ["opt", "qwen3_moe"])
def test_saved_again_it_is_the_same_model(
    kind: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    out, _ = folder_without(kind, GONE, model_folder, tmp_path)
    loaded, tokens = load(out), torch.tensor([[9, 40, 41, 42]])
    loaded.save_pretrained(tmp_path / "saved")
    assert torch.equal(load(tmp_path / "saved")(tokens).logits, loaded(tokens).logits)
    sizes = [
        sum(f.stat().st_size for f in p.glob("*.safetensors")) for p in (out, tmp_path / "saved")
    ]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


@pytest.mark.parametrize("kind", [*KINDS, "bert"])
def test_streamed_it_gives_what_transformers_gives(
    kind: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    out, parts = folder_without(kind, GONE, model_folder, tmp_path)
    assert len(parts) == 3
    stream = open_fitted(out)
    task = stream.skeleton.task
    inputs, causal = model_inputs(task), task == "causal-lm"
    loaded = load(out) if causal else AutoModel.from_pretrained(out, dtype=torch.float32).eval()
    with torch.no_grad():
        outputs = loaded(**{inputs.name: inputs.values})
    expected = outputs.logits.flatten(0, 1) if causal else outputs.last_hidden_state
    result = streamed(stream, inputs, tmp_path)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_parts_go_beside_blocks(kind: str, model_folder: ModelFolder, tmp_path: Path) -> None:
    """Block 0 is gone, so that block 1's attention is the cache's layer 0."""
    gone = {(1, PartRole.ATTENTION), (2, PartRole.FFN)}
    out, _ = folder_without(kind, gone, model_folder, tmp_path, kept=(1, 2))
    loaded = load(out)
    assert loaded.config.num_hidden_layers == 2
    prompt = tiny_tokenizer()("a prompt of thirty tokens or more", return_tensors="pt")
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    cached = loaded.generate(**prompt, **options)
    assert torch.equal(cached, loaded.generate(**prompt, **options, use_cache=False))


@pytest.mark.slow
def test_without_blockwright_it_does_not_load(model_folder: ModelFolder, tmp_path: Path) -> None:
    folders = []
    for kind in ("llama", "opt", "qwen3_moe"):
        work = tmp_path / kind
        work.mkdir()
        folders.append(str(folder_without(kind, GONE, model_folder, work)[0]))
    code = """
import sys
from transformers import AutoModelForCausalLM
for folder in sys.argv[1:]:
    try:
        AutoModelForCausalLM.from_pretrained(folder)
    except Exception as error:
        print("refused", "mismatch" in str(error))
"""
    command = [sys.executable, "-c", code, *folders]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["refused", "True"] * 3
