"""Windows of tokens: full, in a seeded order, opened as the tokenizer opens a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, LlamaConfig, PreTrainedTokenizerFast

from blockwright.errors import TextError
from blockwright.texts import TokenSet, load_tokenizer, tokenize, tokens

BEGIN, END = 0, 1
WORDS = {"<begin>": BEGIN, "<end>": END, "?": 2, **{f"w{i}": i + 3 for i in range(1000)}}


def make_tokenizer(template: str | None = None, **special: str) -> Any:
    """One token per word; ``template`` is what the tokenizer itself adds around a text."""
    inner = Tokenizer(models.WordLevel(WORDS, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if template:
        marks = [("<begin>", BEGIN), ("<end>", END)]
        inner.post_processor = processors.TemplateProcessing(single=template, special_tokens=marks)
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="?", **special)


def make_documents(lengths: list[int]) -> list[str]:
    """Documents of these lengths in words, all words different."""
    numbers = iter(range(1000))
    return [" ".join(f"w{next(numbers)}" for _ in range(length)) for length in lengths]


def windows(tokenizer: Any, documents: list[str], length: int, count: int) -> list[list[int]]:
    ids: list[list[int]] = tokenize(documents, tokenizer, length, length * count, 0).ids.tolist()
    return ids


def words(first: int, count: int) -> list[int]:
    return [number + 3 for number in range(first, first + count)]


def test_a_tokenizer_that_adds_nothing_gets_a_begin_token_per_document() -> None:
    tokenizer = make_tokenizer(bos_token="<begin>", eos_token="<end>")
    assert windows(tokenizer, make_documents([10]), 4, 2) == [
        [BEGIN, *words(0, 3)],
        words(3, 4),
    ]


def test_without_a_begin_token_documents_are_closed_by_the_end_token() -> None:
    tokenizer = make_tokenizer(eos_token="<end>")
    assert windows(tokenizer, make_documents([5]), 6, 1) == [[*words(0, 5), END]]


def test_without_any_special_token_documents_are_joined() -> None:
    assert windows(make_tokenizer(), make_documents([6]), 3, 2) == [words(0, 3), words(3, 3)]


def test_what_the_tokenizer_puts_first_opens_every_window() -> None:
    tokenizer = make_tokenizer("<begin> $A", bos_token="<begin>")
    assert windows(tokenizer, make_documents([8]), 4, 2) == [
        [BEGIN, *words(0, 3)],
        [BEGIN, *words(3, 3)],
    ]


def test_a_window_that_starts_a_document_is_opened_once() -> None:
    tokenizer = make_tokenizer("<begin> $A", bos_token="<begin>")
    found = windows(tokenizer, make_documents([3, 3]), 4, 2)
    assert sorted(found) == [[BEGIN, *words(0, 3)], [BEGIN, *words(3, 3)]]


def test_what_the_tokenizer_puts_last_closes_documents() -> None:
    tokenizer = make_tokenizer("<begin> $A <end>", cls_token="<begin>", sep_token="<end>")
    assert windows(tokenizer, make_documents([8]), 5, 2) == [
        [BEGIN, *words(0, 4)],
        [BEGIN, *words(4, 4)],
    ]
    assert windows(tokenizer, make_documents([3]), 5, 1) == [[BEGIN, *words(0, 3), END]]


def test_the_seed_decides_the_order_and_the_digest_tells_it() -> None:
    tokenizer, documents = make_tokenizer(), make_documents([4] * 20)
    first, again, other = (tokenize(documents, tokenizer, 8, 80, seed) for seed in (0, 0, 1))
    assert torch.equal(first.ids, again.ids)
    assert first.digest == again.digest
    assert first.digest != other.digest
    assert sorted(first.ids.flatten().tolist()) == sorted(other.ids.flatten().tolist())


def test_the_digest_tells_the_shape_too() -> None:
    tokenizer, documents = make_tokenizer(), make_documents([24])
    digests = {tokenize(documents, tokenizer, length, 24, 0).digest for length in (4, 6, 8)}
    assert len(digests) == 3


def test_a_token_set_says_what_it_is() -> None:
    found = tokenize(make_documents([24]), make_tokenizer(), 5, 23, 0, name="notes.txt")
    assert found.ids.dtype == torch.int64
    assert found.ids.shape == (4, 5)
    assert (found.tokens, found.sequence_length) == (20, 5)
    assert found.description == "4 sequences of 5 tokens from notes.txt"


def test_a_text_too_short_is_refused_with_both_counts() -> None:
    with pytest.raises(TextError, match=r"notes has 24 tokens, 40 are needed \(5 sequences of 8\)"):
        tokenize(make_documents([24]), make_tokenizer(), 8, 40, 0, name="notes")


def test_less_is_enough_when_that_was_said() -> None:
    def shorter(at_least: int) -> TokenSet:
        return tokenize(make_documents([26]), make_tokenizer(), 8, 80, 0, at_least=at_least)

    assert shorter(24).ids.shape == (3, 8)
    with pytest.raises(TextError, match="26 tokens, 32 are needed"):
        shorter(32)


def test_only_what_is_needed_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, encoded, encode = make_tokenizer(), [], tokens._encode

    def record(encoder: Any, text: str) -> list[int]:
        encoded.append(text)
        return encode(encoder, text)

    monkeypatch.setattr(tokens, "ENCODE_CHARACTERS", 100)
    monkeypatch.setattr(tokens, "_encode", record)
    document = make_documents([900])[0].replace(" ", "\n")
    found = tokenize([document, document], tokenizer, 10, 100, 0)
    assert found.ids.flatten().tolist() == words(0, 100)
    assert sum(map(len, encoded)) < 1000


def test_a_sequence_too_short_for_the_opening_is_refused() -> None:
    tokenizer = make_tokenizer("<begin> $A", bos_token="<begin>")
    with pytest.raises(TextError, match="sequence length 2 is too short; 3 tokens or more"):
        tokenize(make_documents([8]), tokenizer, 2, 4, 0)


def test_a_tokenizer_that_makes_no_tokens_is_refused() -> None:
    inner = Tokenizer(models.BPE())
    with pytest.raises(TextError, match="the tokenizer makes no tokens"):
        tokenize(["text"], PreTrainedTokenizerFast(tokenizer_object=inner), 2, 4, 0)


def test_a_saved_tokenizer_is_loaded_from_its_folder(tmp_path: Path) -> None:
    saved = make_tokenizer(bos_token="<begin>")
    saved.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert windows(loaded, make_documents([7]), 4, 2) == windows(saved, make_documents([7]), 4, 2)


@pytest.mark.parametrize("config", [LlamaConfig, BertConfig])
def test_a_model_folder_without_tokenizer_files_is_refused(tmp_path: Path, config: Any) -> None:
    config().save_pretrained(tmp_path)
    with pytest.raises(TextError, match="tokenizer") as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
