"""What every adapter gives back of four damages, after the same steps.

    D1  a third of the FFN channels gone, those of the least weights
    D2  int3-g64, rounded to nearest
    D3  every linear at half of its rank
    D4  one block gone

R = (loss damaged - loss healed) / (loss damaged - loss original), cross-entropy on held-out text.

python -m benchmarks.adapters --out adapters.json [--steps 300] [--seeds 0 1 2] [--adapters auto]
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from blockwright import pipeline
from blockwright.errors import AdapterError, CandidateError
from blockwright.registry import adapter_names
from blockwright.types import Budget, FitRequest, HealRequest, Preset

BUNDLED = Path(__file__).resolve().parents[1] / "src" / "blockwright" / "bundled" / "model"
FFN_KEPT, RANK_KEPT, GONE_BLOCK = 0.7, 0.5, 3


def narrower_ffns(model: Any) -> None:
    """D1, in place: the channels of the least product of norms go."""
    for block in model.model.layers:
        ffn = block.mlp
        score = ffn.down_proj.weight.norm(dim=0) * ffn.up_proj.weight.norm(dim=1)
        kept = score.topk(int(FFN_KEPT * len(score))).indices.sort().values
        for name, axis in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
            linear = getattr(ffn, name)
            linear.weight = nn.Parameter(linear.weight.index_select(axis, kept).contiguous())
            linear.out_features, linear.in_features = linear.weight.shape
    model.config.intermediate_size = len(kept)


def half_ranks(model: Any) -> None:
    """D3, in place: the smaller half of all singular values goes."""
    for module in model.model.layers.modules():
        if isinstance(module, nn.Linear):
            U, s, Vh = torch.linalg.svd(module.weight.float(), full_matrices=False)
            rank = int(RANK_KEPT * len(s))
            low = (U[:, :rank] * s[:rank]) @ Vh[:rank]
            module.weight = nn.Parameter(low.to(module.weight.dtype))


def block_gone(model: Any) -> None:
    """D4, in place."""
    del model.model.layers[GONE_BLOCK]
    for index, block in enumerate(model.model.layers):
        block.self_attn.layer_idx = index
    model.config.num_hidden_layers -= 1


DENSE: dict[str, Callable[[Any], None]] = {
    "D1": narrower_ffns,
    "D3": half_ranks,
    "D4": block_gone,
}


def damaged(which: str, model: Path, work: Path) -> Path:
    """A folder of the damaged model."""
    out = work / which
    if which == "D2":
        request = FitRequest(
            model=str(model),
            out=out,
            budget=Budget(bits=3.3),
            candidates=("int3-g64:rtn",),
            preset=Preset.FAST,
            library=work / "library",
            calibration_tokens=2048,
            sampled_share=0.0,
            sequence_length=512,
            eval_tokens=2048,
            speed=False,
        )
        return pipeline.fit(request).out
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    with torch.no_grad():
        DENSE[which](loaded)
    loaded.save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(model / name, out / name)
    return out


def healed(folder: Path, adapter: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """R and what it took, or why it could not stand there."""
    with TemporaryDirectory() as scratch:
        request = HealRequest(
            model=str(folder),
            against=str(arguments.model),
            out=Path(scratch) / "healed",
            adapter=adapter,
            steps=arguments.steps,
            rate=arguments.rate,
            batch_tokens=arguments.batch_tokens,
            eval_tokens=arguments.eval_tokens,
            seed=seed,
            threads=arguments.threads,
        )
        try:
            result = pipeline.heal(request)
        except (AdapterError, CandidateError) as error:
            return {"refused": str(error)}
    return {
        "recovered": result.recovered,
        "kl_before": result.before.kl_divergence,
        "kl_after": result.after.kl_divergence,
        "trainable": result.trainable,
        "seconds": result.training_seconds,
    }


def main() -> None:
    """Print one line per run and write them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=BUNDLED)
    parser.add_argument("--damages", nargs="+", default=["D1", "D2", "D3", "D4"])
    parser.add_argument("--adapters", nargs="+", default=["auto", *adapter_names()])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--eval-tokens", type=int)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    found = []
    with TemporaryDirectory() as scratch:
        folders = {d: damaged(d, arguments.model, Path(scratch)) for d in arguments.damages}
        for which, adapter, seed in product(folders, arguments.adapters, arguments.seeds):
            figures = healed(folders[which], adapter, seed, arguments)
            found.append({"damage": which, "adapter": adapter, "seed": seed} | figures)
            print(json.dumps(found[-1]), flush=True)
    text = json.dumps({"steps": arguments.steps, "runs": found}, indent=1)
    arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
