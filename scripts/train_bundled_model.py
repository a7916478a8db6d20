"""Train the bundled model: a small Llama on the source text of Python's standard library.

Run with the pinned interpreter (its own standard library is the data):

    python scripts/train_bundled_model.py --work build/bundled

Killed at any moment, the same command resumes from the last checkpoint.  Stages, each skipped
when its output exists: read and split the modules, train the tokenizer, train, write the folder
``src/blockwright/bundled/`` (model, tokenizer, texts, licence, model card).

With ``--recipe bdwp@format=sparse2of4`` and a folder for ``--out``, the same training runs under a
training-time recipe (``blockwright methods`` lists them); a recipe that widens FFNs does so.

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
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from blockwright.errors import UserError
from blockwright.registry import recipe_named
from blockwright.training import (
    Entry,
    TokenStream,
    TrainingRecipe,
    TrainingSettings,
    mean_loss,
    train,
)

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
class Shape:
    """The model; with the settings, everything that decides the weights."""

    hidden_size: int = 256
    intermediate_size: int = 640
    num_blocks: int = 8
    num_heads: int = 4
    num_kv_heads: int = 2
    vocab_size: int = 4096
    positions: int = 2048
    initial_std: float = 0.06
    seed: int = 0


def training_settings(tokens: int) -> TrainingSettings:
    """Short sequences first, the last fifth long."""
    batch_tokens = 4096
    return TrainingSettings(
        steps=math.ceil(tokens / batch_tokens),
        batch_tokens=batch_tokens,
        short_length=512,
        long_length=2048,
        long_share=0.2,
        learning_rate=2.5e-3,
        warmup_steps=100,
        checks=40,
    )


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


def model_config(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_blocks,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        vocab_size=shape.vocab_size,
        initializer_range=shape.initial_std,
        max_position_embeddings=shape.positions,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


@torch.no_grad()
def new_model(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A model whose blocks all learn from the start.

    At this width the usual std of 0.02 leaves queries and keys almost without gradient: after 0.5M
    tokens the loss was that of single-token frequencies.  Outputs to the residual stream are scaled
    by 1 / sqrt(2 * blocks).
    """
    torch.manual_seed(shape.seed)
    model = LlamaForCausalLM(model_config(shape, tokenizer))
    for block in model.model.layers:
        block.self_attn.o_proj.weight.div_(math.sqrt(2 * shape.num_blocks))
        block.mlp.down_proj.weight.div_(math.sqrt(2 * shape.num_blocks))
    return model


def heldout_loss(model: PreTrainedModel, documents: list[torch.Tensor], length: int) -> float:
    """Mean nats per token over up to 64k tokens."""
    return mean_loss(model, torch.cat(documents).long()[:65_536], length, 4096)


def trained_model(
    shape: Shape,
    settings: TrainingSettings,
    recipe: TrainingRecipe | None,
    tokenizer: PreTrainedTokenizerFast,
    documents: dict[str, list[torch.Tensor]],
    work: Path,
) -> tuple[LlamaForCausalLM, list[Entry]]:
    """Train, resuming from ``work/checkpoint.pt``; returns the model and its log."""
    model = new_model(shape, tokenizer)

    def judge(model: PreTrainedModel) -> Mapping[str, float]:
        return {"heldout_loss_512": heldout_loss(model, documents["heldout"], 512)}

    log = train(
        model,
        TokenStream(documents["train"], settings.seed),
        settings,
        recipe=recipe,
        checkpoint=work / "checkpoint.pt",
        judge=judge,
        say=lambda entry: print(json.dumps(entry), flush=True),
    )
    return model, log


def last_tenth_gain(log: list[Entry]) -> float:
    """Fraction by which held-out loss fell over the last tenth of training."""
    before = min(log, key=lambda entry: abs(entry["tokens"] - 0.9 * log[-1]["tokens"]))
    return 1 - log[-1]["heldout_loss_512"] / before["heldout_loss_512"]


def model_card(figures: dict[str, object]) -> str:
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
    shape: Shape,
    settings: TrainingSettings,
    recipe: TrainingRecipe | None,
    tokenizer: PreTrainedTokenizerFast,
    model: LlamaForCausalLM,
    log: list[Entry],
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
        "blocks": shape.num_blocks,
        "hidden / intermediate size": f"{shape.hidden_size} / {shape.intermediate_size}",
        "heads / kv heads": f"{shape.num_heads} / {shape.num_kv_heads}",
        "vocabulary": shape.vocab_size,
        "positions": shape.positions,
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
        "held-out loss gained in the last tenth": f"{last_tenth_gain(log):.2%}",
        "training recipe": repr(recipe) if recipe else "none",
        "seed": shape.seed,
        "trained on": f"{platform.machine()} CPU, bf16 autocast, "
        f"torch {torch.__version__}, {log[-1]['seconds'] / 60:.0f} minutes",
    }
    (folder / "model" / "README.md").write_text(model_card(figures), encoding="utf-8")
    (folder / "training_log.json").write_text(
        json.dumps({"recipe": asdict(shape) | asdict(settings), "log": log}, indent=1) + "\n",
        encoding="utf-8",
    )


def licence_file() -> Path:
    """LICENSE.txt of the running interpreter's standard library."""
    return Path(sysconfig.get_path("stdlib")) / "LICENSE.txt"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/bundled"), help="checkpoints")
    parser.add_argument("--out", type=Path, default=BUNDLED)
    parser.add_argument("--recipe", help="training-time recipe, e.g. bdwp@format=sparse2of4")
    parser.add_argument("--tokens", type=int, default=10_000_000)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.recipe and arguments.out == BUNDLED:
        parser.error("--recipe makes another model than the bundled one; name a folder with --out")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    if platform.python_version() != PYTHON_VERSION:
        sys.exit(
            f"the data is Python {PYTHON_VERSION}'s library, this is {platform.python_version()}"
        )
    torch.set_num_threads(arguments.threads)
    try:
        run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def run(arguments: argparse.Namespace) -> None:
    """All stages."""
    recipe = recipe_named(arguments.recipe) if arguments.recipe else None
    shape, settings = Shape(), training_settings(arguments.tokens)
    if recipe:
        width = recipe.inner_width(shape.intermediate_size)
        shape = replace(shape, intermediate_size=width)
    arguments.work.mkdir(parents=True, exist_ok=True)
    modules = read_modules(Path(sysconfig.get_path("stdlib")))
    splits = split_modules(modules)
    folder = arguments.work / "tokenizer"
    if not folder.exists():
        texts = (text for name in splits["train"] for text in modules[name])
        train_tokenizer(texts, shape.vocab_size).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    documents = {
        split: encode_documents(tokenizer, [text for name in names for text in modules[name]])
        for split, names in splits.items()
    }
    for split, items in documents.items():
        count = sum(len(item) for item in items)
        print(f"{split}: {len(splits[split])} modules, {count} tokens", flush=True)
    model, log = trained_model(shape, settings, recipe, tokenizer, documents, arguments.work)
    bundle = (shape, settings, recipe, tokenizer, model, log, modules, splits, documents)
    write_bundle(*bundle, arguments.out)
    print(f"wrote {arguments.out}; last tenth gained {last_tenth_gain(log):.2%}")


if __name__ == "__main__":
    main()
