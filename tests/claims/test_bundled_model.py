"""Statistical claims on a trained model: the bundled one, on its held-out text."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockwright import pipeline
from blockwright.cli.demo import bundled_model
from blockwright.types import Budget, FitRequest, Preset
from tests.claims.ledger import Grade, claim

TEXT = "16k calibration, 8k held-out tokens"


def uniform_kl(candidate: str, bits: float, seed: int, work: Path) -> float:
    """KL divergence of the uniform plan of one candidate, refined, in nats per token."""
    result = pipeline.fit(
        FitRequest(
            model=str(bundled_model()),
            out=work / f"{candidate}-{seed}",
            budget=Budget(bits=bits),
            candidates=(candidate,),
            preset=Preset.FAST,
            library=work / "library",
            seed=seed,
            threads=1,
            calibration_tokens=16_384,
            sequence_length=512,
            eval_tokens=8_192,
            speed=False,
        )
    )
    assert result.uniform is not None
    assert result.uniform.kl_divergence is not None
    return result.uniform.kl_divergence


@pytest.mark.slow
@claim(
    method="gptq",
    says="on a trained model, too, it beats rounding to nearest at equal bytes",
    measures=f"held-out KL / that of rtn, bundled model, uniform int3-g64, {TEXT}",
    grade=Grade.SOFT,
    at_most=0.8,
)
def test_gptq_beats_rounding_on_the_bundled_model(seed: int, tmp_path: Path) -> float:
    compensated, rounded = (
        uniform_kl(f"int3-g64:{method}", 3.3, seed, tmp_path) for method in ("gptq", "rtn")
    )
    return compensated / rounded


@pytest.mark.slow
@claim(
    method="lord",
    says="with ranks that the plan chooses it loses less than the plain SVD with equal ones",
    measures="held-out KL of rank-p{50..99} by lord / that of uniform rank-p80 by plain SVD, at 0.8"
    f" of the linears' bytes, bundled model, {TEXT}",
    grade=Grade.SOFT,
    at_most=0.5,
)
def test_lord_with_a_plan_beats_the_plain_svd(seed: int, tmp_path: Path) -> float:
    kls = []
    chosen = [f"rank-p{percent}:lord" for percent in (50, 60, 70, 80, 90, 99)]
    for name, candidates in (("lord", chosen), ("svd", ["rank-p80:svd@metric=weight"])):
        request = FitRequest(
            model=str(bundled_model()),
            out=tmp_path / f"{name}-{seed}",
            budget=Budget(bits=0.8 * 16),
            candidates=tuple(candidates),
            preset=Preset.FAST,
            library=tmp_path / "library",
            seed=seed,
            threads=1,
            calibration_tokens=16_384,
            sequence_length=512,
            eval_tokens=8_192,
            speed=False,
        )
        kls.append(pipeline.fit(request).fitted.kl_divergence or 0.0)
    return kls[0] / kls[1]
