"""Claims about schedules and merging: multigrid training, means of models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.optimizers import documents
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from blockwright import pipeline
from blockwright.cli.demo import bundled_model
from blockwright.training import TokenStream, TrainingSettings, mean_loss, train
from blockwright.training.multigrid import FINE_SHARE
from tests.claims.ledger import Grade, claim
from tests.pipeline.test_averaging import changed, logits, scramble

MULTIGRID = "Wu et al., A Multigrid Method for Efficiently Training Video Models, CVPR 2020"
DIMAT = "Saadati et al., DIMAT, CVPR 2024"
LENGTH = 256


def settings(seed: int, **changes: Any) -> TrainingSettings:
    options: dict[str, Any] = {
        "steps": 250,
        "batch_tokens": 10 * LENGTH,
        "short_length": LENGTH,
        "long_length": LENGTH,
        "learning_rate": 2.5e-3,
        "seed": seed,
    }
    return TrainingSettings(**(options | changes))


def heldout(model: Any) -> float:
    return mean_loss(model, torch.cat(documents("heldout"))[:8_192], LENGTH, 2048)


@claim(
    method="multigrid",
    family="schedules",
    paper=MULTIGRID,
    says="every step has as many tokens, and the end has the full length",
    measures="tokens of a step / those of the base; full length / length in the last 15%; 2,560 and"
    " 4,096 tokens, sequences of 256 and 512",
    grade=Grade.HARD,
    at_least=0.95,
    at_most=1.0,
)
def test_multigrid_keeps_the_tokens_of_a_step() -> Iterator[float]:
    for tokens, longest in ((2560, 256), (4096, 512)):
        found = settings(0, batch_tokens=tokens, short_length=longest, long_length=longest)
        found = TrainingSettings(**(vars(found) | {"multigrid": True}))
        lengths = [found.length_at(step) for step in range(found.steps)]
        yield min(tokens // length * length / tokens for length in lengths)
        fine = lengths[round((1 - FINE_SHARE) * found.steps) :]
        yield max(longest / length for length in fine)


@pytest.mark.slow
@claim(
    method="multigrid",
    family="schedules",
    paper=MULTIGRID,
    says="after as many tokens it is as good at the full length, for less attention",
    measures="held-out loss less that of full sequences throughout, 4 blocks of 128, 250 steps of"
    " 2,560 tokens from scratch",
    grade=Grade.SOFT,
    at_most=0.02,
)
def test_multigrid_ends_as_low(seed: int) -> float:
    return from_scratch(seed, multigrid=True) - from_scratch(seed, multigrid=False)


def from_scratch(seed: int, *, multigrid: bool) -> float:
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        initializer_range=0.06,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    stream = TokenStream(documents("calibration"), seed)
    train(model, stream, settings(seed, multigrid=multigrid))
    return heldout(model)


@pytest.mark.slow
@claim(
    method="dimat",
    family="merging",
    paper=DIMAT,
    says="channels and heads in another order are found again, and the mean is the model",
    measures="units / those matched; largest change of logits over 1e-4; 0 where the plain mean"
    " is the model too; the bundled model and a copy in another order",
    grade=Grade.HARD,
    at_most=1.0,
)
def test_a_scrambled_copy_averages_to_the_model(tmp_path: Path) -> Iterator[float]:
    model = bundled_model()
    other = changed(model, tmp_path / "scrambled", scramble)
    result = pipeline.average((str(model), str(other)), tmp_path / "mean")
    yield 8 * (640 + 2) / result.units
    yield (logits(result.out) - logits(model)).abs().max().item() / 1e-4
    plain = pipeline.average((str(model), str(other)), tmp_path / "plain", align=False)
    yield 0.5 / (logits(plain.out) - logits(model)).abs().max().item()


@pytest.mark.slow
@claim(
    method="dimat",
    family="merging",
    paper=DIMAT,
    says="the mean of two models trained apart is no worse than either in the mean, nor than the"
    " plain mean",
    measures="held-out loss of the matched mean less the least of the models' mean loss and the"
    " plain mean's + 0.01; bundled model, 100 steps of 512 tokens on each half of the text",
    grade=Grade.SOFT,
    at_most=0.0,
)
def test_a_mean_of_models_trained_apart(seed: int, tmp_path: Path) -> float:
    halves = [trained_on_half(seed, half, tmp_path / str(half)) for half in (0, 1)]
    losses = [heldout(loaded(folder)) for folder in halves]
    names = [str(folder) for folder in halves]
    matched, plain = (
        heldout(loaded(pipeline.average(names, tmp_path / f"mean-{align}", align=align).out))
        for align in (True, False)
    )
    return matched - min(sum(losses) / 2, plain + 0.01)


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def trained_on_half(seed: int, half: int, out: Path) -> Path:
    """The bundled model after steps on every other document."""
    model = loaded(bundled_model())
    stream = TokenStream(documents("calibration")[half::2], seed)
    train(model, stream, settings(seed, steps=100, batch_tokens=512, learning_rate=3e-4))
    model.save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (out / name).write_bytes((bundled_model() / name).read_bytes())
    return out
