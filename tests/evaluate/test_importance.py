"""Scores of blocks: exact cases, and against plain forwards of whole models."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import blockwright
from blockwright.errors import ModelError
from blockwright.evaluate import measure, removal_order, run_to_file, score_blocks, turn_of
from blockwright.evaluate.importance import SINK_TOKENS, BlockScores
from blockwright.stream import Inputs, Stream
from tests.conftest import ModelFolder
from tests.fits import with_tokenizer
from tests.models import VOCAB
from tests.stream.test_equals_own_forward import model_inputs, open_stream

IDS = torch.randint(5, VOCAB, (3, 24), generator=torch.Generator().manual_seed(3))


class Zeroed:
    """A source in which some parameters are zeros."""

    def __init__(self, stream: Stream, endings: tuple[str, ...]) -> None:
        self._source, self._endings = stream.source, endings

    def load(self, parameters: Iterable[str]) -> dict[str, Tensor]:
        found = self._source.load(parameters)
        return {n: t * 0 if n.endswith(self._endings) else t for n, t in found.items()}


def without_effect(folder: Path, block: int) -> Stream:
    """A model with a block that adds nothing."""
    stream = open_stream(folder)
    names = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
    source = Zeroed(stream, tuple(f"layers.{block}.{name}" for name in names))
    return Stream(stream.skeleton, source, dtype=torch.float32)


def scores(stream: Stream, folder: Path, *, suffixes: bool = True) -> list[BlockScores]:
    return score_blocks(stream, Inputs("input_ids", IDS, 2), folder, suffixes=suffixes)


def test_a_block_that_adds_nothing_has_no_influence_and_no_cost(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    found = scores(without_effect(model_folder("llama"), 1), tmp_path)[1]
    assert abs(found.block_influence) < 1e-6
    assert abs(found.macro_influence) < 1e-6
    assert found.drop_loss == pytest.approx(0, abs=1e-9)
    assert found.own.relative_change == 0
    assert found.own.positions == 3 * (24 - SINK_TOKENS)


def test_the_last_block_turns_the_end_as_far_as_it_turns_its_input(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    last = scores(open_stream(model_folder("llama")), tmp_path)[-1]
    assert last.macro_influence == pytest.approx(last.block_influence, rel=1e-12)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
def test_scores_are_those_of_the_model_without_the_block(
    kind: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    stream, inputs = open_stream(model_folder(kind)), Inputs("input_ids", IDS, 2)
    found = scores(stream, tmp_path)
    assert [each.block for each in found] == list(stream.blocks)
    whole = run_to_file(stream, inputs, tmp_path / "whole.bin")
    for each in found:
        others = [index for index in stream.blocks if index != each.block]
        rest = run_to_file(stream.with_blocks(others), inputs, tmp_path / f"{each.block}.bin")
        assert each.without == measure(rest, whole)
        x, y = (file.read(0, 3)[:, SINK_TOKENS:].flatten(0, 1) for file in (whole.file, rest.file))
        cosine = torch.nn.functional.cosine_similarity(x, y, dim=-1).mean()
        assert each.macro_influence == pytest.approx(1 - float(cosine), abs=1e-5)


def test_block_influence_is_that_of_the_models_own_hidden_states(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    folder = model_folder("llama")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        hidden = model(input_ids=IDS, output_hidden_states=True).hidden_states
    first = scores(open_stream(folder), tmp_path, suffixes=False)[0]
    x, y = (states[:, SINK_TOKENS:].flatten(0, 1) for states in hidden[:2])
    cosine = torch.nn.functional.cosine_similarity(x, y, dim=-1).mean()
    assert first.block_influence == pytest.approx(1 - float(cosine), abs=1e-5)
    assert 0 <= first.own.angle <= 1
    with pytest.raises(ValueError, match="ask for suffixes"):
        _ = first.macro_influence
    with pytest.raises(ValueError, match="ask for suffixes"):
        _ = first.drop_loss


def test_encoders_and_image_models_are_scored_too(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    stream = open_stream(model_folder("bert"))
    inputs = model_inputs(stream.skeleton.task)
    for each in score_blocks(stream, inputs, tmp_path):
        assert each.without is not None
        assert each.drop_loss == pytest.approx((each.without.relative_error or 0) ** 2)
        assert each.drop_loss > 0


def test_a_turn_does_not_see_the_scale_and_leaves_zeros_out() -> None:
    random = torch.Generator().manual_seed(0)
    x, y = (torch.randn(20, 6, generator=random).double() for _ in range(2))
    plain, scaled = turn_of([(x, y)]), turn_of([(3 * x, 0.5 * y)])
    assert scaled.cosine_distance == pytest.approx(plain.cosine_distance)
    assert scaled.angle == pytest.approx(plain.angle)
    opposite = turn_of([(x, -x)])
    assert opposite.cosine_distance == pytest.approx(2)
    assert opposite.angle == pytest.approx(1)
    y[3] = 0
    left_out = turn_of([(x[:10], y[:10]), (x[10:], y[10:])])
    assert (left_out.positions, left_out.zeros) == (19, 1)
    seen = torch.arange(20) != 3
    assert left_out.angle == pytest.approx(turn_of([(x[seen], y[seen])]).angle)


def test_greedy_removal_takes_the_least_score_and_measures_again(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    stream, inputs = open_stream(model_folder("llama")), Inputs("input_ids", IDS, 2)
    order = removal_order(stream, inputs, tmp_path, 2)
    losses = {each.block: each.drop_loss for each in scores(stream, tmp_path)}
    assert order[0] == min(losses, key=lambda block: losses[block])
    whole = run_to_file(stream, inputs, tmp_path / "original.bin")
    pairs = {}
    for block in set(stream.blocks) - {order[0]}:
        kept = [index for index in stream.blocks if index not in (order[0], block)]
        rest = run_to_file(stream.with_blocks(kept), inputs, tmp_path / f"{block}.bin")
        pairs[block] = measure(rest, whole).kl_divergence or 0.0
    assert order[1] == min(pairs, key=lambda block: pairs[block])
    assert removal_order(without_effect(model_folder("llama"), 0), inputs, tmp_path, 1) == [0]
    with pytest.raises(ValueError, match="cannot be removed"):
        removal_order(stream, inputs, tmp_path, len(stream.blocks))


def test_a_model_on_disk_is_scored_on_a_text(model_folder: ModelFolder, tmp_path: Path) -> None:
    model = with_tokenizer(model_folder("llama"), tmp_path)
    text = tmp_path / "text.txt"
    text.write_text("a b c d e f g h " * 40, encoding="utf-8")
    found, again = (
        blockwright.score_blocks(str(model), text=text, tokens=48, sequence_length=16, threads=1)
        for _ in range(2)
    )
    assert [each["block"] for each in found] == [0, 1, 2]
    assert all(each["drop_loss"] > 0 and each["perplexity_without"] > 1 for each in found)
    assert again == found
    with pytest.raises(ModelError, match="need a text model"):
        blockwright.score_blocks(str(model_folder("vit")), text=text)
