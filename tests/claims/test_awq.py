"""Claims about AWQ.  Errors are tr(D H D^T) / tr(W H W^T) on held-out inputs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from blockwright.methods.quantize.awq import Awq
from blockwright.methods.quantize.gptq import Gptq
from blockwright.methods.quantize.rtn import Rtn
from blockwright.numerics.losses import quadratic_error
from blockwright.types import LinearMethod, Statistic
from tests.capture.test_grouping import change_by_folds
from tests.claims.ledger import Grade, claim
from tests.claims.test_quantize import grid_format
from tests.conftest import ModelFolder
from tests.layers import Layer, outlier_layer

FORMATS = ("int3-g64", "int4-g64")


def scaled_error(scaling: Awq, method: LinearMethod, layer: Layer, format: str) -> float:
    """Held-out error of a weight filled under the chosen scale."""
    t = scaling.choose_scale([layer.W_OI], layer.statistics, grid_format(format))
    solution = method.solve(
        (layer.W_OI * t).contiguous(), layer.statistics.scaled(t), grid_format(format)
    )
    return layer.heldout_error(solution.weight() / t)


def error(method: LinearMethod, layer: Layer, format: str) -> float:
    return layer.heldout_error(
        method.solve(layer.W_OI, layer.statistics, grid_format(format)).weight()
    )


@claim(
    method="awq",
    says="scaling strong channels alone beats rounding to nearest",
    measures="held-out error of awq@search=none>rtn / rtn, outlier-layer, int{3,4}-g64",
    grade=Grade.FIRM,
    at_most=0.8,
)
def test_scales_alone_beat_rounding_to_nearest(seed: int) -> Iterator[float]:
    layer = outlier_layer(seed)
    for format in FORMATS:
        nearest = error(Rtn(), layer, format)
        yield scaled_error(Awq(search="none"), Rtn(), layer, format) / nearest


@claim(
    method="awq",
    says="with ranges clipped it beats rounding to nearest by more",
    measures="held-out error of awq (ranges searched) / rtn, outlier-layer, int{3,4}-g64",
    grade=Grade.FIRM,
    at_most=0.7,
)
def test_scales_and_searched_ranges_beat_rounding_to_nearest(seed: int) -> Iterator[float]:
    layer = outlier_layer(seed)
    for format in FORMATS:
        nearest = error(Rtn(), layer, format)
        yield scaled_error(Awq(), Rtn(search="gram"), layer, format) / nearest


@claim(
    method="awq",
    says="it adds to GPTQ where a few channels are strong",
    measures="held-out error of awq>gptq / gptq, outlier-layer, int{3,4}-g64",
    grade=Grade.FIRM,
    at_most=0.9,
)
def test_scales_add_to_gptq(seed: int) -> Iterator[float]:
    layer = outlier_layer(seed)
    for format in FORMATS:
        yield scaled_error(Awq(), Gptq(), layer, format) / error(Gptq(), layer, format)


@pytest.mark.slow
@claim(
    method="awq",
    says="the grid holds alpha = 0, so calibration loss is never above rounding to nearest's",
    measures="calibration error of awq / rtn@search=gram, outlier-layer, int{2,3,4}-g64",
    grade=Grade.HARD,
    at_most=1 + 1e-6,
)
def test_calibration_error_is_never_above_that_of_no_scale(seed: int) -> Iterator[float]:
    method, layer = Rtn(search="gram"), outlier_layer(seed)
    H = layer.statistics.need(Statistic.INPUT_GRAM)
    for format in ("int2-g64", *FORMATS):
        grid = grid_format(format)
        t = Awq().choose_scale([layer.W_OI], layer.statistics, grid)
        scaled = method.solve((layer.W_OI * t).contiguous(), layer.statistics.scaled(t), grid)
        plain = method.solve(layer.W_OI, layer.statistics, grid)
        found = quadratic_error(scaled.weight() / t - layer.W_OI, H)
        yield found / quadratic_error(plain.weight() - layer.W_OI, H)


@claim(
    method="awq",
    says="the strongest channels are scaled up",
    measures="least t of the four strong channels / median t, outlier-layer, int4-g64",
    grade=Grade.FIRM,
    at_least=1.2,
)
def test_strong_channels_are_scaled_up(seed: int) -> float:
    layer = outlier_layer(seed)
    t = Awq().choose_scale([layer.W_OI], layer.statistics, grid_format("int4-g64"))
    strong = torch.topk(layer.X_TI.abs().mean(0), 4).indices
    return float(t[strong].min() / t.median())


@claim(
    method="awq",
    says="a folded scale changes no output",
    measures="relative change of logits, fp32, every group of a block folded, random models of"
    " llama, gemma3, opt and gpt2",
    grade=Grade.HARD,
    at_most=1e-4,
)
def test_a_folded_scale_changes_no_output(
    model_folder: ModelFolder, tmp_path: Path
) -> Iterator[float]:
    for kind in ("llama", "gemma3", "opt", "gpt2"):
        yield change_by_folds(model_folder(kind), tmp_path)
