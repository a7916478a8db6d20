"""Folders of low-rank and sparse weights: they load, generate with a cache, pad, and save again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import blockwright  # noqa: F401 - makes transformers know the folders
from blockwright.anatomy import build_skeleton
from blockwright.assemble import Layout, assemble
from blockwright.checkpoint import Checkpoint, ParameterSource
from blockwright.formats import FormatLinear
from blockwright.registry import format_named, method_named
from blockwright.stream import FittedFolder, weight_of
from blockwright.types import LinearMethod, PackedFormat, Site, SiteKind, Statistics
from tests.conftest import ModelFolder
from tests.fits import tiny_tokenizer

FORMATS = (
    *("rank-p50", "sparse2of4", "rank-p75+int8", "sparse2of4+int4-g32", "sparse50", "bf16"),
    *("id-p50", "id-p75+int8"),
)
KINDS: dict[str, dict[str, int]] = {
    "llama": {"intermediate_size": 128},
    "gpt2": {"n_inner": 128},
    "phi3": {"intermediate_size": 128},
    "qwen3_moe": {"moe_intermediate_size": 64},
}


def data_free(format: PackedFormat) -> LinearMethod:
    name = format.default_method or ""
    plain = (("metric", "weight"),)
    options = {"svd": ("svd", plain), "lord": ("cur", plain), "sparsegpt": ("magnitude", ())}
    return method_named(*options.get(name, (name, ())))


def packed(name: str) -> PackedFormat:
    format = format_named(name)
    assert isinstance(format, PackedFormat)
    return format


def write_folder(model: Path, out: Path, names: tuple[str, ...] = FORMATS) -> dict[str, Any]:
    """Every linear in the next of the formats, data-free; returns the specs."""
    checkpoint, skeleton = Checkpoint.open(model), build_skeleton(model)
    source = ParameterSource(skeleton.model, checkpoint)
    linears = [site for site in skeleton.sites if site.kind is SiteKind.LINEAR]
    formats = {site.id: packed(names[k % len(names)]) for k, site in enumerate(linears)}

    def stored_tensors(site: Site) -> Mapping[str, Tensor]:
        W_OI = weight_of(site, source.load([site.parameter])[site.parameter])
        format = formats[site.id]
        solution = data_free(format).solve(W_OI, Statistics(tokens=0), format)
        return format.pack(solution, None, torch.bfloat16).stored_tensors()

    specs = {name: format.spec() for name, format in formats.items()}
    layout = Layout(skeleton, specs, range(skeleton.num_blocks))
    assemble(layout, source, checkpoint, stored_tensors, out)
    return specs


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_all_structures_generates_with_a_cache_and_pads(
    kind: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    write_folder(model_folder(kind, **KINDS[kind]), tmp_path / "out")
    loaded, tokenizer = load(tmp_path / "out"), tiny_tokenizer()
    found = {module.format.name for module in loaded.modules() if isinstance(module, FormatLinear)}
    assert found >= set(FORMATS)

    texts = ("ab cd", "a longer text than that")
    batch = tokenizer(list(texts), return_tensors="pt", padding=True)
    assert (batch["attention_mask"] == 0).any()
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    together = loaded.generate(**batch, **options)
    for text, tokens in zip(texts, together, strict=True):
        alone = tokenizer(text, return_tensors="pt")
        cached = loaded.generate(**alone, **options)
        assert torch.equal(tokens[-6:], cached[0, -6:])
        assert torch.equal(cached, loaded.generate(**alone, **options, use_cache=False))


@pytest.mark.parametrize("kind", ["gpt2", "qwen3_moe"])
def test_saved_again_it_is_the_same_model(
    kind: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    write_folder(model_folder(kind, **KINDS[kind]), tmp_path / "out")
    tokens = torch.tensor([[9, 40, 41, 42]])
    loaded = load(tmp_path / "out")
    before = loaded(tokens).logits
    loaded.save_pretrained(tmp_path / "saved")
    assert torch.equal(load(tmp_path / "saved")(tokens).logits, before)


@pytest.mark.parametrize("kind", ["gpt2", "qwen3_moe"])
def test_streamed_weights_are_those_that_the_loaded_model_multiplies(
    kind: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    model, out = model_folder(kind, **KINDS[kind]), tmp_path / "out"
    specs = write_folder(model, out)
    skeleton, checkpoint = build_skeleton(model), Checkpoint.open(out)
    shapes = {name: tuple(tensor.shape) for name, tensor in skeleton.parameters.items()}
    base = ParameterSource(skeleton.model, checkpoint)
    folder = FittedFolder(base, checkpoint, skeleton.sites, shapes, specs)
    modules = dict(load(out).named_modules())
    for site in skeleton.sites:
        if site.id in specs:
            path = site.stored_prefix.removesuffix(".")
            W_OI = weight_of(site, folder.load([site.parameter])[site.parameter])
            assert torch.equal(W_OI, modules[path].dequantize()), site.id


@pytest.mark.slow
def test_without_blockwright_no_structure_loads(model_folder: ModelFolder, tmp_path: Path) -> None:
    names = ("rank-p50", "sparse2of4")
    for name in names:
        write_folder(model_folder("llama", **KINDS["llama"]), tmp_path / name, (name,))
    code = """
import sys
from transformers import AutoModelForCausalLM
for folder in sys.argv[1:]:
    try:
        AutoModelForCausalLM.from_pretrained(folder)
    except Exception as error:
        print("refused", "mismatch" in str(error))
"""
    command = [sys.executable, "-c", code, *(str(tmp_path / name) for name in names)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["refused", "True", "refused", "True"]
