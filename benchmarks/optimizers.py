"""Adam's moments in 8 bits against those of fp32: the bundled model's trainer on its shape, from
random weights, seed by seed.

    python -m benchmarks.optimizers --out FOLDER [--seeds 0 1 2 3 4] [--steps 500]

``FOLDER`` gets one file for every training and ``optimizers.json``; the same command goes on where
a killed one was, a training from its last tenth.
"""

from __future__ import annotations

import argparse
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, LlamaForCausalLM

from benchmarks.cells import mean, measured
from blockwright.checkpoint import write_json_atomic
from blockwright.errors import TrainingError
from blockwright.texts import bundled_documents, load_tokenizer
from blockwright.training import TokenStream, TrainingSettings, mean_loss, train
from blockwright.tuning import FreeTensor
from blockwright.tuning.optimizers import optimizer_named
from blockwright.tuning.optimizers.moments import LEAST_ELEMENTS

BUNDLED = Path(__file__).resolve().parents[1] / "src" / "blockwright" / "bundled" / "model"
LENGTH, HELDOUT_TOKENS = 256, 8_192


@cache
def documents(split: str) -> list[Tensor]:
    """Shipped text as the trainer takes it."""
    tokenizer = load_tokenizer(BUNDLED)
    found = (tokenizer(text, verbose=False)["input_ids"] for text in bundled_documents(split))
    return [torch.tensor([tokenizer.bos_token_id, *ids]) for ids in found]


@torch.no_grad()
def new_model(seed: int) -> LlamaForCausalLM:
    """The bundled model before it was trained."""
    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(BUNDLED)
    config.dtype = torch.float32
    model = LlamaForCausalLM(config)
    for block in model.model.layers:
        for linear in (block.self_attn.o_proj, block.mlp.down_proj):
            linear.weight.div_(math.sqrt(2 * config.num_hidden_layers))
    return model


def final_loss(
    seed: int, *, eight_bit: bool, steps: int, batch_tokens: int, checkpoint: Path | None = None
) -> float:
    """Held-out nats per token after training; infinite where it diverged."""
    settings = TrainingSettings(
        steps=steps,
        batch_tokens=batch_tokens,
        short_length=LENGTH,
        long_length=LENGTH,
        learning_rate=2.5e-3,
        warmup_steps=100,
        seed=seed,
        eight_bit=eight_bit,
    )
    model = new_model(seed)
    try:
        train(model, TokenStream(documents("calibration"), seed), settings, checkpoint=checkpoint)
        return mean_loss(model, torch.cat(documents("heldout"))[:HELDOUT_TOKENS], LENGTH, 2048)
    except TrainingError:
        return math.inf


def state_share(name: str = "adam") -> float:
    """Bytes of 8-bit states over those of fp32, of all tensors of the bundled model that are large
    enough.
    """
    large = [p for p in new_model(0).parameters() if p.numel() >= LEAST_ELEMENTS]
    items = {str(place): FreeTensor(p.detach()) for place, p in enumerate(large)}
    return (
        optimizer_named(f"{name}8bit", items).state_bytes()
        / optimizer_named(name, items).state_bytes()
    )


def main() -> None:
    """Print one line per training and write all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch-tokens", type=int, default=512)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    ratios = []
    for seed in arguments.seeds:
        losses = [loss(arguments, seed, eight_bit=eight_bit) for eight_bit in (True, False)]
        ratios.append(losses[0] / losses[1])
        print(json.dumps({"seed": seed, "losses": losses, "ratio": ratios[-1]}), flush=True)
    shares = {name: state_share(name) for name in ("adam", "sgd")}
    figures = {"ratios": ratios, "mean": mean(ratios), "worst": max(ratios), "state": shares}
    write_json_atomic(arguments.out / "optimizers.json", figures)
    print(json.dumps(figures, indent=1))


def loss(arguments: argparse.Namespace, seed: int, *, eight_bit: bool) -> float:
    """Of one training, measured once."""
    name = f"{'adam8bit' if eight_bit else 'adam'}-{seed}"
    checkpoint = arguments.out / f"{name}.pt"
    setting = {"steps": arguments.steps, "batch_tokens": arguments.batch_tokens, "seed": seed}

    def measure() -> dict[str, Any]:
        found = final_loss(
            seed,
            eight_bit=eight_bit,
            steps=arguments.steps,
            batch_tokens=arguments.batch_tokens,
            checkpoint=checkpoint,
        )
        checkpoint.unlink(missing_ok=True)
        return {"loss": found}

    return float(measured(arguments.out / f"{name}.json", setting, measure)["loss"])


if __name__ == "__main__":
    main()
