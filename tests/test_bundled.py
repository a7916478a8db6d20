"""The model and texts that ship with the package."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from blockwright.anatomy import build_skeleton
from blockwright.cli.demo import bundled_model
from blockwright.texts import (
    BUNDLED_SPLITS,
    bundled_documents,
    check_disjoint,
    load_tokenizer,
    tokenize,
)

BUNDLED = bundled_model().parent


def bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_it_is_small_and_licensed() -> None:
    assert (BUNDLED / "model" / "model.safetensors").stat().st_size <= 16_000_000
    assert bytes_below(BUNDLED / "texts") <= 2_000_000
    assert "PYTHON SOFTWARE FOUNDATION LICENSE" in (BUNDLED / "LICENSE-PYTHON.txt").read_text()


def test_its_shape_is_the_documented_one() -> None:
    skeleton = build_skeleton(BUNDLED / "model")
    config = skeleton.config
    parameters = sum(p.numel() for p in skeleton.model.parameters())
    assert 5_000_000 <= parameters <= 8_000_000
    assert skeleton.num_blocks >= 6
    assert config.num_key_value_heads < config.num_attention_heads
    assert config.max_position_embeddings == 2048


def test_splits_are_disjoint() -> None:
    check_disjoint({split: bundled_documents(split) for split in BUNDLED_SPLITS})


def test_tokenizer_has_spare_special_tokens_and_round_trips() -> None:
    tokenizer = load_tokenizer(BUNDLED / "model")
    assert len(tokenizer) == 4096
    assert tokenizer.mask_token_id is not None
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    text = "def caf\u00e9(x):\n\treturn x  # \U0001f40d\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_it_was_trained_long_enough() -> None:
    log = json.loads((BUNDLED / "training_log.json").read_text(encoding="utf-8"))["log"]
    assert log[-1]["tokens"] >= 8_000_000
    before = min(log, key=lambda entry: abs(entry["tokens"] - 0.9 * log[-1]["tokens"]))
    assert 1 - log[-1]["heldout_loss_512"] / before["heldout_loss_512"] < 0.005


def test_it_predicts_heldout_text_as_its_card_says() -> None:
    log = json.loads((BUNDLED / "training_log.json").read_text(encoding="utf-8"))["log"]
    tokenizer = load_tokenizer(BUNDLED / "model")
    tokens = tokenize(bundled_documents("heldout"), tokenizer, 512, 8192, seed=0)
    model = AutoModelForCausalLM.from_pretrained(BUNDLED / "model", dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(input_ids=tokens.ids).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.ids[:, 1:].flatten())
    assert abs(float(loss) - log[-1]["heldout_loss_512"]) < 0.5
