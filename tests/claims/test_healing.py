"""Statistical claims about healing: the bundled model at 2.3 bits, trained towards its original."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks.optimizers import final_loss

from blockwright import pipeline
from blockwright.cli.demo import bundled_model
from blockwright.types import Budget, FitRequest, HealRequest, HealResult, Preset
from tests.claims.ledger import Grade, claim

SETTING = (
    "bundled model at 2.3 bits (int2-g64 and int3-g64 by gptq), shipped text, 100 steps of 1,024"
    " tokens"
)


def fitted(work: Path) -> Path:
    """A folder of 2.3 bits per weight."""
    return pipeline.fit(
        FitRequest(
            model=str(bundled_model()),
            out=work / "fitted",
            budget=Budget(bits=2.3),
            candidates=("int2-g64:gptq", "int3-g64:gptq"),
            preset=Preset.FAST,
            library=work / "library",
            threads=1,
            calibration_tokens=8_192,
            sampled_share=0.0,
            eval_tokens=4_096,
            speed=False,
        )
    ).out


def healed(folder: Path, work: Path, optimizer: str = "adam") -> HealResult:
    request = HealRequest(
        model=str(folder),
        against=str(bundled_model()),
        out=work / f"healed-{optimizer}",
        optimizer=optimizer,
        steps=100,
        batch_tokens=1_024,
        eval_tokens=4_096,
        threads=1,
    )
    return pipeline.heal(request)


@pytest.mark.slow
@claim(
    method="e2eqp",
    says="steps, norms and the table, trained end to end, give back most of what few bits took",
    measures=f"held-out KL after / before, {SETTING}",
    grade=Grade.SOFT,
    at_most=0.6,
)
def test_healing_of_steps_recovers_a_model_of_few_bits(tmp_path: Path) -> float:
    result = healed(fitted(tmp_path), tmp_path)
    return (result.after.kl_divergence or 1.0) / (result.before.kl_divergence or 1.0)


@pytest.mark.slow
@claim(
    method="adam8bit",
    family="optimizers",
    paper="Dettmers et al., 8-bit Optimizers via Block-wise Quantization, ICLR 2022",
    says="states of 8 bits train as well as those of fp32",
    measures=f"final loss on selection text / that of fp32 Adam, {SETTING}",
    grade=Grade.SOFT,
    at_most=1.01,
)
def test_eight_bits_train_as_well_as_fp32(tmp_path: Path) -> float:
    folder = fitted(tmp_path)
    losses = [healed(folder, tmp_path, name).selection_loss_after for name in ("adam8bit", "adam")]
    return losses[0] / losses[1]


@pytest.mark.slow
@claim(
    method="adam8bit",
    family="optimizers",
    paper="Dettmers et al., 8-bit Optimizers via Block-wise Quantization, ICLR 2022",
    says="training from random weights ends where it ends with states of fp32",
    measures="held-out loss / that with fp32 AdamW (infinite where it diverged), the bundled"
    " model's shape and trainer, 500 steps of 512 tokens, 5 seeds",
    grade=Grade.SOFT,
    at_most=1.01,
)
def test_eight_bits_train_from_the_start_as_well_as_fp32() -> Iterator[float]:
    for seed in range(5):
        losses = [
            final_loss(seed, eight_bit=eight_bit, steps=500, batch_tokens=512)
            for eight_bit in (True, False)
        ]
        yield losses[0] / losses[1]
