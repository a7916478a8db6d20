"""Claims about scores of blocks, on a tiny random model and on the bundled one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from scipy.stats import spearmanr

from blockwright.evaluate import (
    BlockScores,
    FinalHidden,
    measure,
    removal_order,
    run_to_file,
    score_blocks,
)
from blockwright.stream import Inputs
from tests.bundled import bundled_inputs, bundled_stream
from tests.claims.ledger import Grade, claim
from tests.conftest import ModelFolder
from tests.evaluate.test_importance import IDS, without_effect
from tests.stream.test_equals_own_forward import open_stream

SHORTGPT = "Men et al., ShortGPT, 2024"
FUSEGPT = "Pei et al., FuseGPT, 2024"
OURS = "none; loss of the model without the block"
TOKENS = 2048
PAIRS = ((2, 6), (1, 4), (2, 3), (5, 6), (6, 7))
"""Scattered and neighbouring blocks."""


@pytest.fixture(scope="module")
def bundled_scores(tmp_path_factory: pytest.TempPathFactory) -> list[BlockScores]:
    """Scores of the bundled model's blocks on calibration text, seed 0."""
    inputs = bundled_inputs("calibration", TOKENS)
    return score_blocks(bundled_stream(), inputs, tmp_path_factory.mktemp("scores"))


def without(blocks: Sequence[int], split: str, folder: Path) -> FinalHidden:
    """The bundled model without some blocks on a text."""
    stream = bundled_stream()
    kept = [index for index in stream.blocks if index not in blocks]
    target = folder / f"{split}-{'-'.join(map(str, blocks))}.bin"
    return run_to_file(stream.with_blocks(kept), bundled_inputs(split, TOKENS), target)


@claim(
    method="block scores",
    family="depth",
    paper=OURS,
    says="a block that adds nothing has no influence, no macro influence and no loss",
    measures="|score|, random llama of 3 blocks with a block whose output weights are zeros",
    grade=Grade.HARD,
    at_most=1e-6,
)
def test_a_block_that_adds_nothing_scores_zero(
    model_folder: ModelFolder, tmp_path: Path
) -> Iterator[float]:
    stream, inputs = without_effect(model_folder("llama"), 1), Inputs.of_tokens(IDS)
    found = score_blocks(stream, inputs, tmp_path)[1]
    yield from map(abs, (found.block_influence, found.macro_influence, found.drop_loss))


@claim(
    method="macro influence",
    family="depth",
    paper=FUSEGPT,
    says="of the last block it is the block influence",
    measures="MI / BI - 1, last block of a random llama",
    grade=Grade.HARD,
    at_least=-1e-9,
    at_most=1e-9,
)
def test_of_the_last_block_it_is_the_block_influence(
    model_folder: ModelFolder, tmp_path: Path
) -> float:
    last = score_blocks(open_stream(model_folder("llama")), Inputs.of_tokens(IDS), tmp_path)[-1]
    return last.macro_influence / last.block_influence - 1


@pytest.mark.slow
@claim(
    method="block influence",
    family="depth",
    paper=SHORTGPT,
    says="it orders blocks as their removal does",
    measures="Spearman correlation with the KL without the block, bundled model, 2k tokens",
    grade=Grade.FIRM,
    at_least=0.8,
)
def test_block_influence_orders_blocks(bundled_scores: list[BlockScores]) -> float:
    return correlation(bundled_scores, lambda found: found.block_influence)


@pytest.mark.slow
@claim(
    method="macro influence",
    family="depth",
    paper=FUSEGPT,
    says="it orders blocks as their removal does",
    measures="Spearman correlation with the KL without the block, bundled model, 2k tokens",
    grade=Grade.FIRM,
    at_least=0.8,
)
def test_macro_influence_orders_blocks(bundled_scores: list[BlockScores]) -> float:
    return correlation(bundled_scores, lambda found: found.macro_influence)


@pytest.mark.slow
@claim(
    method="loss without a block",
    family="depth",
    paper=OURS,
    says="losses of two blocks nearly add up; neighbours cost more together",
    measures="joint KL / sum of the single ones, 5 pairs, bundled model, 2k tokens",
    grade=Grade.FIRM,
    at_least=1 / 3,
    at_most=3,
)
def test_losses_of_two_blocks_nearly_add_up(
    bundled_scores: list[BlockScores], tmp_path: Path
) -> Iterator[float]:
    losses = {each.block: each.drop_loss for each in bundled_scores}
    original = without((), "calibration", tmp_path)
    for pair in PAIRS:
        joint = measure(without(pair, "calibration", tmp_path), original).kl_divergence
        yield (joint or 0.0) / sum(losses[block] for block in pair)


@pytest.mark.slow
@claim(
    method="loss without a block",
    family="depth",
    paper=OURS,
    says="removing greedily by it, or by macro influence, is no worse than at once by block"
    " influence",
    measures="held-out perplexity without 2 blocks / that by BI: MI, then KL; bundled model",
    grade=Grade.SOFT,
    at_most=1.02,
)
def test_greedy_removal_is_no_worse(
    bundled_scores: list[BlockScores], tmp_path: Path
) -> Iterator[float]:
    stream, inputs = bundled_stream(), bundled_inputs("calibration", TOKENS)
    at_once = sorted(bundled_scores, key=lambda found: found.block_influence)[:2]
    rival = perplexity([found.block for found in at_once], tmp_path)
    for score in (lambda found: found.macro_influence, lambda found: found.drop_loss):
        order = removal_order(stream, inputs, tmp_path, 2, score)
        yield perplexity(order, tmp_path) / rival


def perplexity(removed: Sequence[int], folder: Path) -> float:
    """Of the bundled model without some blocks, on held-out text."""
    return measure(without(sorted(removed), "heldout", folder)).perplexity or 0.0


def correlation(found: list[BlockScores], score: Callable[[BlockScores], float]) -> float:
    """Spearman's, with the loss."""
    return float(spearmanr([score(each) for each in found], [e.drop_loss for e in found])[0])
