"""Half-quadratic quantization."""

from __future__ import annotations

import pytest
import torch

from blockwright.errors import CandidateError, NumericalError
from blockwright.methods.quantize.hqq import Hqq, let_go
from blockwright.methods.quantize.rtn import Rtn
from blockwright.numerics.grids import OffsetGrid
from blockwright.registry import format_named
from blockwright.types import GridFormat, GridSolution, Statistics
from tests.layers import Layer, outlier_layer

NOTHING = Statistics(tokens=0)


@pytest.fixture(scope="module")
def layer() -> Layer:
    return outlier_layer(0, out_features=24, in_features=128, tokens=300)


def solved(method: Hqq, layer: Layer, name: str) -> tuple[GridSolution, OffsetGrid]:
    solution = method.solve(layer.W_OI, layer.statistics, format_named(name))
    assert isinstance(solution.grid, OffsetGrid)
    return solution, solution.grid


def test_the_threshold_lets_large_errors_go_and_is_odd() -> None:
    R = torch.tensor([-2.0, -0.1, 0.0, 0.1, 0.5, 2.0])
    found = let_go(R, 0.7, 10.0)
    by_hand = [abs(r) - abs(r) ** -0.3 / 10 if r else 0.0 for r in R.tolist()]
    expected = [
        (1 if r > 0 else -1) * max(e, 0.0) for r, e in zip(R.tolist(), by_hand, strict=True)
    ]
    assert found.tolist() == pytest.approx(expected)
    assert found[2] == 0


@pytest.mark.parametrize("relative", [True, False])
def test_it_is_the_authors_loop_in_zero_points(layer: Layer, relative: bool) -> None:
    """Their update of z, group by group; the offset is m = (center - z) s, rounded as stored."""
    method = Hqq(relative=relative, search="none")
    format = format_named("affine3-g64")
    assert isinstance(format, GridFormat)
    start = format.fit_grid(layer.W_OI)
    _, grid = solved(method, layer, "affine3-g64")
    assert isinstance(start, OffsetGrid)
    for row in range(4):
        w, s = layer.W_OI[row, :64].double(), float(start.scale[row, 0])
        m, tried = float(start.offset[row, 0]), dict[float, float]()
        for turn in range(method.iterations + 1):
            z = 4 - m / s
            c = (w / s + z).round().clamp(0, 7)
            R = w - (c - z) * s
            tried.setdefault(m, float(R.abs().mean()))
            unit, beta = s if relative else 1.0, 10.0 * 1.01**turn
            E = let_go(R / unit, 0.7, beta) * unit
            z = float((c - (w - E) / s).mean())
            m = float(torch.tensor((4 - z) * s).bfloat16())
        assert float(grid.offset[row, 0]) in tried
        assert tried[float(grid.offset[row, 0])] <= min(tried.values()) * (1 + 1e-5)


@pytest.mark.parametrize("search", ["none", "mse", "gram"])
@pytest.mark.parametrize("name", ["affine1-g32", "affine2-g64", "affine4-row", "affine8-g128"])
def test_no_group_is_worse_than_at_its_start(layer: Layer, name: str, search: str) -> None:
    method = Hqq(search=search)  # type: ignore[arg-type]
    solution, _ = solved(method, layer, name)
    start = Rtn(search=search).solve(layer.W_OI, layer.statistics, format_named(name))  # type: ignore[arg-type]
    size = solution.grid.group_size or 128  # type: ignore[attr-defined]
    after, before = (
        (each.weight() - layer.W_OI).abs().view(24, -1, size).mean(-1) for each in (solution, start)
    )
    assert (after <= before * (1 + 1e-5) + 1e-9).all()
    assert after.sum() < before.sum()


def test_what_is_not_finite_and_other_formats_are_refused(layer: Layer) -> None:
    with pytest.raises(NumericalError, match="NaN or infinity"):
        Hqq().solve(layer.W_OI * torch.inf, NOTHING, format_named("affine4-g64"))
    with pytest.raises(CandidateError, match="hqq cannot fill int4-g64"):
        Hqq().solve(layer.W_OI, NOTHING, format_named("int4-g64"))


@pytest.mark.parametrize("options", [{"p": 0.0}, {"p": 1.5}, {"beta": 0.0}, {"iterations": 0}])
def test_options_that_cannot_be_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(CandidateError, match="needs p above 0"):
        Hqq(**options)  # type: ignore[arg-type]
