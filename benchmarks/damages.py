"""Four damages to a Llama-shaped model, as folders, for adapters to heal."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from blockwright import pipeline
from blockwright.anatomy import build_skeleton
from blockwright.assemble import Layout, assemble
from blockwright.checkpoint import Checkpoint, ParameterSource
from blockwright.registry import format_named, method_named
from blockwright.stream import weight_of
from blockwright.texts import bundled_documents, load_tokenizer
from blockwright.types import (
    Budget,
    FitRequest,
    PackedFormat,
    Preset,
    Site,
    SiteKind,
    Statistics,
)

FFN_KEPT, RANK_KEPT, GONE_BLOCK = 0.7, 0.5, 3
SEEN_TOKENS = 2048
"""Of calibration text, for the activations of channels."""


def damaged(which: str, model: Path, work: Path) -> Path:
    """The folder of a damaged model, made once."""
    out = work / which
    if not out.is_dir():
        partial = work / f"{which}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        work.mkdir(parents=True, exist_ok=True)
        DAMAGES[which](model, partial)
        partial.rename(out)
    return out


def narrower_ffns(model: Path, out: Path) -> None:
    """D1: the channels of the least mean |activation| times column norm go."""
    loaded = open_model(model)
    seen = mean_activations(loaded, model)
    for block, activation in zip(loaded.model.layers, seen, strict=True):
        ffn = block.mlp
        score = ffn.down_proj.weight.norm(dim=0) * activation
        kept = score.topk(int(FFN_KEPT * len(score))).indices.sort().values
        for name, axis in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
            linear = getattr(ffn, name)
            linear.weight = nn.Parameter(linear.weight.index_select(axis, kept).contiguous())
            linear.out_features, linear.in_features = linear.weight.shape
    loaded.config.intermediate_size = len(kept)
    save(loaded, model, out)


@torch.no_grad()
def mean_activations(loaded: Any, model: Path) -> list[Tensor]:
    """Mean |x| of every channel of every FFN, on shipped text."""
    found: list[Tensor] = []

    def see(linear: nn.Module, args: tuple[Tensor]) -> None:
        found.append(args[0].float().abs().flatten(0, -2).mean(0))

    text = "\n".join(bundled_documents("calibration")[:8])
    ids = torch.tensor(load_tokenizer(model)(text, verbose=False)["input_ids"][:SEEN_TOKENS])
    hooks = [b.mlp.down_proj.register_forward_pre_hook(see) for b in loaded.model.layers]
    loaded(ids[None])
    for hook in hooks:
        hook.remove()
    return found


def rounded(model: Path, out: Path) -> None:
    """D2: int3-g64, rounded to nearest."""
    library = out.with_name(f"{out.name}.library")
    request = FitRequest(
        model=str(model),
        out=out,
        budget=Budget(bits=3.3),
        candidates=("int3-g64:rtn",),
        preset=Preset.FAST,
        library=library,
        calibration_tokens=2048,
        sampled_share=0.0,
        sequence_length=512,
        eval_tokens=2048,
        speed=False,
    )
    pipeline.fit(request)
    shutil.rmtree(library)


def half_ranks(model: Path, out: Path) -> None:
    """D3: two factors of half the rank, by the weight's own SVD."""
    checkpoint, skeleton = Checkpoint.open(model), build_skeleton(model)
    parameters = ParameterSource(skeleton.model, checkpoint)
    method = method_named("svd", (("metric", "weight"),))
    sites = [site for site in skeleton.sites if site.kind is SiteKind.LINEAR]
    formats = {site.id: rank_format(site) for site in sites}

    def stored_tensors(site: Site) -> Mapping[str, Tensor]:
        W_OI = weight_of(site, parameters.load([site.parameter])[site.parameter])
        solution = method.solve(W_OI, Statistics(tokens=0), formats[site.id])
        return formats[site.id].pack(solution, None, torch.bfloat16).stored_tensors()

    specs = {site: format.spec() for site, format in formats.items()}
    layout = Layout(skeleton, specs, range(skeleton.num_blocks))
    assemble(layout, parameters, checkpoint, stored_tensors, out)


def rank_format(site: Site) -> PackedFormat:
    """Half of a weight's full rank."""
    format = format_named(f"rank-r{int(RANK_KEPT * min(site.shape))}")
    if not isinstance(format, PackedFormat):
        raise TypeError(f"{format.name} is not packed")
    return format


def block_gone(model: Path, out: Path) -> None:
    """D4: without one block."""
    loaded = open_model(model)
    del loaded.model.layers[GONE_BLOCK]
    for index, block in enumerate(loaded.model.layers):
        block.self_attn.layer_idx = index
    loaded.config.num_hidden_layers -= 1
    save(loaded, model, out)


DAMAGES: dict[str, Callable[[Path, Path], None]] = {
    "D1": narrower_ffns,
    "D2": rounded,
    "D3": half_ranks,
    "D4": block_gone,
}


def open_model(model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(model, dtype="auto").requires_grad_(False)


def save(loaded: Any, model: Path, out: Path) -> None:
    """As a folder, with the tokenizer of ``model``."""
    loaded.save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(model / name, out / name)
