"""Train the bundled model: a small Llama on the source text of Python's standard library.

Run with the pinned interpreter (its own standard library is the data):

    python scripts/train_bundled_model.py --work build/bundled

Killed at any moment, the same command resumes from the last checkpoint.  Stages, each skipped
when its output exists: read and split the modules, train the tokenizer, train, write the folder
``src/blockwright/bundled/`` (model, tokenizer, texts, licence, model card).

Splits are by whole module (a file or package directly under ``Lib/`` or ``Lib/test/``), chosen by
a hash of its name: calibration, selection and held-out text were never trained on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import shutil
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PYTHON_VERSION = "3.11.7"
BUNDLED = Path(__file__).resolve().parent.parent / "src" / "blockwright" / "bundled"
END, PAD, MASK = "<|endoftext|>", "<|pad|>", "<|mask|>"
SPECIAL_TOKENS = [END, PAD, MASK, *(f"<|reserved_{i}|>" for i in range(13))]
SPLIT_BYTES = {"heldout": 700_000, "selection": 500_000, "calibration": 700_000}
LARGEST_SPLIT_MODULE_BYTES = (
    100_000  # larger modules are trained on, so that no split is one module
)
SKIPPED = {"encodings", "pydoc_data", "site-packages", "__pycache__", "lib2to3", "turtledemo"}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights."""

    hidden_size: int = 256
    intermediate_size: int = 640
    num_blocks: int = 8
    num_heads: int = 4
    num_kv_heads: int = 2
    vocab_size: int = 4096
    positions: int = 2048
    tokens: int = 10_000_000
    batch_tokens: int = 4096
    short_length: int = 512
    long_share: float = 0.2
    learning_rate: float = 2.5e-3
    initial_std: float = 0.06
    warmup_steps: int = 100
    weight_decay: float = 0.1
    seed: int = 0

    @property
    def steps(self) -> int:
        return math.ceil(self.tokens / self.batch_tokens)

    def length_at(self, step: int) -> int:
        """Sequence length in tokens: short first, the last fifth long."""
        return self.short_length if step < self.steps * (1 - self.long_share) else self.positions

    def rate_at(self, step: int) -> float:
        """Linear warm-up, then cosine to zero."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def read_modules(library: Path) -> dict[str, list[str]]:
    """Source files of each module, as ``{module: [text, ...]}`` in a fixed order."""
    modules: dict[str, list[str]] = {}
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).parts
        if SKIPPED & set(parts):
            continue
        depth = 2 if parts[0] == "test" and len(parts) > 1 else 1
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if text.strip():
            modules.setdefault("/".join(parts[:depth]), []).append(text)
    return modules


def split_modules(modules: dict[str, list[str]]) -> dict[str, list[str]]:
    """Names of the modules of each split; the rest is ``train``."""
    order = sorted(modules, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    sizes = {name: sum(len(text.encode()) for text in modules[name]) for name in order}
    splits: dict[str, list[str]] = {"train": []}
    free = [name for name in order if sizes[name] <= LARGEST_SPLIT_MODULE_BYTES]
    for split, budget in SPLIT_BYTES.items():
        splits[split] = []
        while free and sum(sizes[name] for name in splits[split]) + sizes[free[0]] <= budget:
            splits[split].append(free.pop(0))
    taken = {name for names in splits.values() for name in names}
    splits["train"] = [name for name in order if name not in taken]
    return splits


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        mask_token=MASK,
        extra_special_tokens=[t for t in SPECIAL_TOKENS if t.startswith("<|reserved")],
        model_max_length=2048,
        padding_side="left",
    )


def encode_documents(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[torch.Tensor]:
    """One int16 tensor per document, each opened by the end-of-text token."""
    start = tokenizer.bos_token_id
    encoded = tokenizer.backend_tokenizer.encode_batch(texts)
    return [torch.tensor([start, *item.ids], dtype=torch.int16) for item in encoded]


class TokenStream:
    """Documents in a new order every epoch, cut into windows; position is one integer."""

    def __init__(self, documents: list[torch.Tensor], seed: int) -> None:
        self.documents, self.seed = documents, seed
        self.epoch_tokens = sum(len(document) for document in documents)
        self.epoch, self.tokens = -1, torch.empty(0, dtype=torch.int16)

    def window(self, position: int, count: int) -> torch.Tensor:
        """``count`` tokens from ``position`` on (an epoch's last incomplete window is skipped)."""
        usable = self.epoch_tokens // count * count
        epoch, offset = divmod(position // count * count, usable)
        if epoch != self.epoch:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            order = torch.randperm(len(self.documents), generator=generator).tolist()
            self.tokens, self.epoch = torch.cat([self.documents[i] for i in order]), epoch
        return self.tokens[offset : offset + count].long()


def model_config(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_blocks,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_kv_heads,
        vocab_size=recipe.vocab_size,
        initializer_range=recipe.initial_std,
        max_position_embeddings=recipe.positions,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


@torch.no_grad()
def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A model whose blocks all learn from the start.

    At this width the usual std of 0.02 leaves queries and keys almost without gradient: after 0.5M
    tokens the loss was that of single-token frequencies.  Outputs to the residual stream are scaled
    by 1 / sqrt(2 * blocks).
    """
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(model_config(recipe, tokenizer))
    for block in model.model.layers:
        block.self_attn.o_proj.weight.div_(math.sqrt(2 * recipe.num_blocks))
        block.mlp.down_proj.weight.div_(math.sqrt(2 * recipe.num_blocks))
    return model


def token_losses(model: LlamaForCausalLM, tokens: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=tokens, use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    )


@torch.no_grad()
def heldout_loss(model: LlamaForCausalLM, documents: list[torch.Tensor], length: int) -> float:
    """Mean nats per token over up to 64k tokens."""
    tokens = torch.cat(documents).long()[: 65_536 // length * length].view(-1, length)
    model.eval()
    losses = [token_losses(model, batch) for batch in tokens.split(4096 // length or 1)]
    model.train()
    return float(torch.cat(losses).mean())


def optimizer_for(model: LlamaForCausalLM, recipe: Recipe) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() != 2]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": recipe.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=recipe.learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )


def save_checkpoint(path: Path, state: dict[str, object]) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def train(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerFast,
    documents: dict[str, list[torch.Tensor]],
    work: Path,
) -> tuple[LlamaForCausalLM, list[dict[str, float]]]:
    """Train, resuming from ``work/checkpoint.pt``; returns the model and its log."""
    model = new_model(recipe, tokenizer)
    optimizer = optimizer_for(model, recipe)
    step, log, seconds = 0, [], 0.0
    checkpoint = work / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["recipe"] != asdict(recipe):
            sys.exit(f"{checkpoint} was made by another recipe; give another --work folder")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, log, seconds = state["step"], state["log"], state["seconds"]
    stream = TokenStream(documents["train"], recipe.seed)
    every = max(1, recipe.steps // 40)
    began = time.monotonic()
    while step < recipe.steps:
        length = recipe.length_at(step)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate_at(step)
        batch = stream.window(step * recipe.batch_tokens, recipe.batch_tokens).view(-1, length)
        loss = token_losses(model, batch).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % every == 0 or step == recipe.steps:
            spent = seconds + time.monotonic() - began
            entry = {
                "step": step,
                "tokens": step * recipe.batch_tokens,
                "train_loss": float(loss.detach()),
                "heldout_loss_512": heldout_loss(model, documents["heldout"], 512),
                "seconds": round(spent, 1),
            }
            log.append(entry)
            print(json.dumps(entry), flush=True)
            save_checkpoint(
                checkpoint,
                {
                    "recipe": asdict(recipe),
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step,
                    "log": log,
                    "seconds": spent,
                },
            )
    return model.eval(), log


def last_tenth_gain(log: list[dict[str, float]], tokens: int) -> float:
    """Fraction by which held-out loss fell over the last tenth of training."""
    before = min(log, key=lambda entry: abs(entry["tokens"] - 0.9 * tokens))
    return 1 - log[-1]["heldout_loss_512"] / before["heldout_loss_512"]


def model_card(recipe: Recipe, figures: dict[str, object]) -> str:
    rows = "\n".join(f"| {name} | {value} |" for name, value in figures.items())
    return f"""---
license: psf-2.0
library_name: transformers
pipeline_tag: text-generation
---
# Blockwright's bundled model

A small Llama trained on the source text of Python {PYTHON_VERSION}'s standard library, so that
Blockwright can be tried, tested and measured without a download.  It continues Python source and is
good for nothing else.

| | |
|---|---|
{rows}

Made by `scripts/train_bundled_model.py`.  Calibration, selection and held-out texts (`../texts/`)
are whole modules of the same library that were not trained on, disjoint from one another.  Special
tokens: `{END}` opens every document; `{PAD}`, `{MASK}` and 13 reserved ones were never seen.

The texts and the data are covered by the Python Software Foundation licence (`LICENSE-PYTHON.txt`).
"""


def write_bundle(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerFast,
    model: LlamaForCausalLM,
    log: list[dict[str, float]],
    modules: dict[str, list[str]],
    splits: dict[str, list[str]],
    documents: dict[str, list[torch.Tensor]],
    folder: Path,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stored = model.to(torch.bfloat16)
    stored.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "texts").mkdir(exist_ok=True)
    for split in SPLIT_BYTES:
        lines = (
            json.dumps({"module": name, "text": text})
            for name in splits[split]
            for text in modules[name]
        )
        (folder / "texts" / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    shutil.copy(licence_file(), folder / "LICENSE-PYTHON.txt")
    single = stored.float()
    figures: dict[str, object] = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "blocks": recipe.num_blocks,
        "hidden / intermediate size": f"{recipe.hidden_size} / {recipe.intermediate_size}",
        "heads / kv heads": f"{recipe.num_heads} / {recipe.num_kv_heads}",
        "vocabulary": recipe.vocab_size,
        "positions": recipe.positions,
        "training tokens": log[-1]["tokens"],
        "distinct training tokens": sum(len(d) for d in documents["train"]),
        "held-out loss, nats per token, 512-token windows": round(
            heldout_loss(single, documents["heldout"], 512), 4
        ),
        "held-out loss, nats per token, 2048-token windows": round(
            heldout_loss(single, documents["heldout"], 2048), 4
        ),
        "held-out bytes per token": round(
            sum(len(t.encode()) for n in splits["heldout"] for t in modules[n])
            / sum(len(d) for d in documents["heldout"]),
            3,
        ),
        "held-out loss gained in the last tenth": f"{last_tenth_gain(log, recipe.tokens):.2%}",
        "seed": recipe.seed,
        "trained on": f"{platform.machine()} CPU, bf16 autocast, "
        f"torch {torch.__version__}, {log[-1]['seconds'] / 60:.0f} minutes",
    }
    (folder / "model" / "README.md").write_text(model_card(recipe, figures), encoding="utf-8")
    (folder / "training_log.json").write_text(
        json.dumps({"recipe": asdict(recipe), "log": log}, indent=1) + "\n", encoding="utf-8"
    )


def licence_file() -> Path:
    """LICENSE.txt of the running interpreter's standard library."""
    return Path(sysconfig.get_path("stdlib")) / "LICENSE.txt"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/bundled"), help="checkpoints")
    parser.add_argument("--out", type=Path, default=BUNDLED)
    parser.add_argument("--tokens", type=int, default=Recipe.tokens)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if platform.python_version() != PYTHON_VERSION:
        sys.exit(
            f"the data is Python {PYTHON_VERSION}'s library, this is {platform.python_version()}"
        )
    torch.set_num_threads(arguments.threads)
    recipe = Recipe(tokens=arguments.tokens)
    arguments.work.mkdir(parents=True, exist_ok=True)
    modules = read_modules(Path(sysconfig.get_path("stdlib")))
    splits = split_modules(modules)
    folder = arguments.work / "tokenizer"
    if not folder.exists():
        texts = (text for name in splits["train"] for text in modules[name])
        train_tokenizer(texts, recipe.vocab_size).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    documents = {
        split: encode_documents(tokenizer, [text for name in names for text in modules[name]])
        for split, names in splits.items()
    }
    for split, items in documents.items():
        count = sum(len(item) for item in items)
        print(f"{split}: {len(splits[split])} modules, {count} tokens", flush=True)
    model, log = train(recipe, tokenizer, documents, arguments.work)
    write_bundle(recipe, tokenizer, model, log, modules, splits, documents, arguments.out)
    print(f"wrote {arguments.out}; last tenth gained {last_tenth_gain(log, recipe.tokens):.2%}")


if __name__ == "__main__":
    main()
