"""Statistical claims on a trained model: the bundled one, on its held-out text."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockwright import pipeline
from blockwright.cli.demo import bundled_model
from blockwright.types import Budget, FitRequest, Preset, Quality
from tests.claims.ledger import Grade, claim

TEXT = "16k calibration, 8k held-out tokens"


def uniform_kl(candidate: str, bits: float, seed: int, work: Path) -> float:
    """KL divergence of the uniform plan of one candidate, refined, in nats per token."""
    found = uniform_quality(candidate, bits, seed, work).kl_divergence
    assert found is not None
    return found


def uniform_quality(candidate: str, bits: float, seed: int, work: Path) -> Quality:
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
    return result.uniform


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
    method="simvq",
    says="on a trained model, too, codes of vectors beat improved integers, at fewer bytes",
    measures=f"held-out KL, uniform vq256-d4-row / quantease int2-g64, bundled model, {TEXT}",
    grade=Grade.SOFT,
    at_most=0.8,
)
def test_vectors_beat_integers_on_the_bundled_model(seed: int, tmp_path: Path) -> float:
    vectors, integers = (
        uniform_kl(candidate, 2.3, seed, tmp_path)
        for candidate in ("vq256-d4-row:simvq", "int2-g64:quantease")
    )
    return vectors / integers


@pytest.mark.slow
@claim(
    method="ptq161",
    says="columns in 4 bits save a trained model that is binarized",
    measures=f"held-out perplexity, uniform bin-p20 / gptq affine1-row, bundled model, {TEXT}",
    grade=Grade.SOFT,
    at_most=0.2,
)
def test_columns_in_4_bits_save_the_bundled_model(seed: int, tmp_path: Path) -> float:
    saved, binary = (
        uniform_quality(candidate, 2.3, seed, tmp_path).perplexity or 0.0
        for candidate in ("bin-p20:ptq161", "affine1-row:gptq")
    )
    return saved / binary


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
