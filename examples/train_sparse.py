"""Train a model so that it can be stored sparse, then fit it: the zeros cost nothing any more.

python examples/train_sparse.py MODEL OUT RECIPE [--text TEXT] [--steps N] [--only PATTERN]

RECIPE is one of `blockwright methods`, e.g. bdwp@format=sparse2of4.
"""

import argparse
import sys
from pathlib import Path

import torch

from blockwright.errors import UserError
from blockwright.progress import stderr_progress
from blockwright.registry import recipe_named
from blockwright.training import TrainingSettings, train_folder

parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
parser.add_argument("model", help="folder or hub id of a causal language model")
parser.add_argument("out", type=Path, help="folder to write")
parser.add_argument("recipe", help="recipe, with options: bdwp@format=sparse2of4")
parser.add_argument("--text", type=Path, help="file, folder or JSONL; default: a shipped text")
parser.add_argument("--steps", type=int, default=300)
parser.add_argument("--batch-tokens", type=int, default=4096, help="tokens per step")
parser.add_argument("--length", type=int, default=512, help="tokens per sequence")
parser.add_argument("--rate", type=float, default=3e-4, help="largest learning rate")
parser.add_argument("--only", default="*", help="linears to work on: '*.mlp.*'; default: all")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--threads", type=int, default=2)
arguments = parser.parse_args()

torch.set_num_threads(arguments.threads)
try:
    recipe = recipe_named(arguments.recipe)
    trained = train_folder(
        arguments.model,
        arguments.out,
        recipe,
        TrainingSettings(
            steps=arguments.steps,
            batch_tokens=arguments.batch_tokens,
            short_length=arguments.length,
            long_length=arguments.length,
            learning_rate=arguments.rate,
            seed=arguments.seed,
        ),
        text=arguments.text,
        only=arguments.only,
        progress=stderr_progress(),
    )
except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
print(f"held-out loss {trained.original_loss:.4f} -> {trained.loss:.4f} nats per token")
print(f"next: blockwright fit {trained.out} --candidates keep,{recipe.format} --ratio R --out DIR")
