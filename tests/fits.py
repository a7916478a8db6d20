"""Tiny fits: a model with a tokenizer, a text, a request."""

from __future__ import annotations

import random
import shutil
import string
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from blockwright.types import Budget, FitRequest, Preset

SPECIAL_TOKENS = ["<pad>", "<bos>", "<eos>", "<unk>", "<mask>"]
CANDIDATES = ("int3-g32:gptq", "int4-g32:gptq", "int8:rtn")


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable character: 105 of them."""
    names = [*SPECIAL_TOKENS, *string.printable]
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        mask_token="<mask>",
        padding_side="left",
    )


def words(seed: int, count: int) -> str:
    """Text of random lower-case words."""
    draw = random.Random(seed)
    return " ".join(
        "".join(draw.choices(string.ascii_lowercase, k=draw.randint(2, 9))) for _ in range(count)
    )


def write_texts(folder: Path) -> tuple[Path, Path]:
    """A folder of calibration documents and a held-out file."""
    texts = folder / "texts"
    texts.mkdir(parents=True, exist_ok=True)
    for index in range(12):
        (texts / f"{index}.txt").write_text(words(index, 60), encoding="utf-8")
    heldout = folder / "heldout.txt"
    heldout.write_text(words(99, 200), encoding="utf-8")
    return texts, heldout


def with_tokenizer(model: Path, folder: Path) -> Path:
    """A copy of a model folder that has a tokenizer."""
    copied = folder / "model"
    shutil.copytree(model, copied)
    tiny_tokenizer().save_pretrained(copied)
    return copied


def request(model: Path, work: Path, **changes: Any) -> FitRequest:
    """A fit of about a second: neither refined nor healed unless asked for."""
    texts, heldout = write_texts(work)
    options: dict[str, Any] = {
        "model": str(model),
        "out": work / "out",
        "budget": Budget(bits=4.6),
        "preset": Preset.FAST,
        "candidates": CANDIDATES,
        "calibration": texts,
        "eval_text": heldout,
        "library": work / "library",
        "threads": 1,
        "calibration_tokens": 1024,
        "sequence_length": 64,
        "eval_tokens": 512,
        "speed": False,
    }
    return FitRequest(**(options | changes))


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """All files but the reports, which hold times."""
    files = [path for path in sorted(folder.iterdir()) if "blockwright-report." not in path.name]
    return {path.name: path.read_bytes() for path in files}


def all_files(folder: Path) -> set[str]:
    """Everything under a folder, by its place in it."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
