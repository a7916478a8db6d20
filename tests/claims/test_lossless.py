"""DFloat11 and K-sort: no bit changes, the bytes that remain, and outliers that stay together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from blockwright import pipeline
from blockwright.cli.demo import bundled_model
from blockwright.formats.df import DfFormat
from blockwright.methods.quantize.exact import Exact
from blockwright.methods.quantize.ksort import Ksort
from blockwright.methods.quantize.rtn import Rtn
from blockwright.numerics.block_floating_point import order_by_norm, round_to_bfp
from blockwright.numerics.dfloat11 import from_bytes, to_bytes
from blockwright.numerics.losses import quadratic_error
from blockwright.registry import format_named
from blockwright.types import DenseSolution, FitRequest, Statistics
from tests.claims.ledger import Grade, claim
from tests.layers import gram, outlier_layer


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kinds_of_weights(seed: int) -> dict[str, Tensor]:
    """Weights as training leaves them, [512, 512] bfloat16."""
    student = normal(seed, 512, 512) / normal(seed + 1, 5, 512, 512).square().mean(0).sqrt()
    scales = torch.exp(normal(seed + 2, 512, 1))
    found = {
        "normal": normal(seed, 512, 512),
        "student-t, 5 degrees": student,
        "rows of log-normal scale": normal(seed, 512, 512) * scales,
    }
    return {name: (0.02 * weight).bfloat16() for name, weight in found.items()}


@claim(
    method="df",
    says="every bit comes back: outputs are bit for bit identical",
    measures="values that differ: all 65,536 bfloat16 patterns, and random weights of many shapes",
    grade=Grade.HARD,
    at_most=0,
)
def test_df11_changes_no_bit(seed: int) -> Iterator[float]:
    patterns = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    drawn = [kind.view(-1) for kind in kinds_of_weights(seed).values()]
    mixed = torch.cat([*drawn, patterns.view(torch.bfloat16)])
    for values in (patterns.view(torch.bfloat16), mixed, *(mixed[:n] for n in (0, 1, 255, 4097))):
        back = from_bytes(to_bytes(values), len(values))
        yield float((back.view(torch.int16) != values.view(torch.int16)).sum())


@claim(
    method="df",
    says="about 70% of the size",
    measures="stored bytes / those of bfloat16: normal, student-t and log-normal rows, [512, 512]",
    grade=Grade.FIRM,
    at_most=0.72,
)
def test_df11_bytes(seed: int) -> Iterator[float]:
    for values in kinds_of_weights(seed).values():
        packed = DfFormat().pack(DenseSolution(values_OI=values), None, torch.bfloat16)
        yield packed.stored_bytes / values.nbytes


@claim(
    method="exact",
    says="what it fills is the weight",
    measures="largest difference of a decoded weight, normal, student-t and log-normal rows",
    grade=Grade.HARD,
    at_most=0,
)
def test_exact_changes_no_weight(seed: int) -> Iterator[float]:
    for values in kinds_of_weights(seed).values():
        solution = Exact().solve(values.float(), Statistics(tokens=0), DfFormat())
        packed = DfFormat().pack(solution, None, torch.bfloat16)
        yield float((packed.dequantize() - values.float()).abs().max())


@pytest.mark.slow
@claim(
    method="df",
    says="about 70% of a model's size, headers, norms and tables included",
    measures="bytes of all files / the original's, bundled model, fit --lossless",
    grade=Grade.HARD,
    at_most=0.72,
)
def test_df11_on_the_bundled_model(tmp_path: Path) -> float:
    result = pipeline.fit(
        FitRequest(
            model=str(bundled_model()),
            out=tmp_path / "out",
            budget=None,
            lossless=True,
            library=tmp_path / "library",
            threads=1,
            speed=False,
        )
    )
    assert result.verified_tensors
    return result.size_bytes / result.original_size_bytes


def logit_error(keys: Tensor, queries: Tensor, group_size: int) -> float:
    """Relative error of q.k with BFP12 keys."""
    exact = queries @ keys.T
    return float((queries @ round_to_bfp(keys, 4, group_size).T - exact).norm() / exact.norm())


@claim(
    method="bfp",
    says="sorted by their norms, outlier channels of keys cost the others nothing",
    measures="error of q.k sorted / unsorted, BFP12, groups of 32, keys [512, 128], 6 channels x12",
    grade=Grade.FIRM,
    at_most=0.88,
)
def test_sorted_keys_lose_less(seed: int) -> float:
    keys, queries = normal(seed, 512, 128), normal(seed + 1, 256, 128)
    keys[:, torch.randperm(128, generator=torch.Generator().manual_seed(seed))[:6]] *= 12
    order = order_by_norm(keys.norm(dim=0))
    return logit_error(keys[:, order], queries[:, order], 32) / logit_error(keys, queries, 32)


def sorted_against_unsorted(W: Tensor, H: Tensor, values: str) -> float:
    """Squared output error of `ksort+<values>` / that of `<values>`, rounded alike."""
    statistics = Statistics(tokens=1000, input_gram=H)
    plain, in_order = format_named(values), format_named(f"ksort+{values}")
    rounded = Rtn(search="mse").solve(W, statistics, plain).weight()
    sorted_ = Ksort().solve(W, statistics, in_order).weight()
    return quadratic_error(sorted_ - W, H) / quadratic_error(rounded - W, H)


@claim(
    method="ksort",
    says="the same for weights whose columns differ: outliers share a group with outliers",
    measures="squared output error / that of bfp4-b32, [256, 256], 12 columns x12, white inputs",
    grade=Grade.FIRM,
    at_most=0.8,
)
def test_sorted_weights_lose_less(seed: int) -> float:
    W = 0.02 * normal(seed, 256, 256)
    W[:, torch.randperm(256, generator=torch.Generator().manual_seed(seed))[:12]] *= 12
    return sorted_against_unsorted(W, torch.eye(256), "bfp4-b32")


@claim(
    method="ksort",
    says="where no column stands out, sorting costs nothing",
    measures="squared output error / that of bfp4-b32, outlier-layer (its inputs stand out)",
    grade=Grade.FIRM,
    at_most=1.1,
)
def test_sorting_like_columns_is_harmless(seed: int) -> float:
    layer = outlier_layer(seed)
    return sorted_against_unsorted(layer.W_OI, gram(layer.X_TI), "bfp4-b32")
