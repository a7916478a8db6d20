"""What calibration text that the model writes itself does to quality, on the bundled model."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

from blockwright import pipeline
from blockwright.cli.demo import bundled_model
from blockwright.types import Budget, FitRequest, Preset

SHARES = (0.0, 0.25, 0.5, 1.0)
BITS = (4.3, 3.3)
SEEDS = (0, 1)


def run(work: Path) -> dict[str, Any]:
    """Held-out KL (nats per token) of the fitted and the uniform plan, by share and budget."""
    found: dict[str, Any] = {}
    for bits in BITS:
        for share in SHARES:
            runs = [fit(work, share, bits, seed) for seed in SEEDS]
            fitted, uniform = ([run[i] for run in runs] for i in (0, 1))
            found[f"{bits} bits, {share:g} sampled"] = {
                "kl_divergence": mean(fitted),
                "kl_divergence_uniform": mean(uniform),
                "by_seed": fitted,
                "by_seed_uniform": uniform,
            }
    return found


def fit(work: Path, share: float, bits: float, seed: int) -> tuple[float, float]:
    """KL of one fit with ``--preset fast`` and of its uniform rival; seed: of text and sampling."""
    request = FitRequest(
        model=str(bundled_model()),
        out=work / f"calibration-{share}-{bits}-{seed}",
        budget=Budget(bits=bits),
        preset=Preset.FAST,
        library=work / f"library-{share}-{seed}",
        sampled_share=share,
        seed=seed,
        speed=False,
    )
    result = pipeline.fit(request)
    uniform = result.uniform.kl_divergence if result.uniform else None
    return result.fitted.kl_divergence or 0.0, uniform or 0.0
