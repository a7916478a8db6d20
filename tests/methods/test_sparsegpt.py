"""SparseGPT against its derivation, and its second sweep against the first."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from blockwright.errors import CandidateError, NumericalError
from blockwright.methods.sparsify.sparsegpt import Sparsegpt
from blockwright.numerics.losses import quadratic_error
from blockwright.registry import format_named, method_named
from blockwright.types import MaskedSolution, Solution, Statistics
from tests.layers import Layer, gram, outlier_layer, synth_layer
from tests.methods.pruning_loop import pruning_loop


@pytest.fixture(scope="module")
def layer() -> Layer:
    return outlier_layer(0, out_features=24, in_features=192, tokens=600)


def solve(layer: Layer, format: str, **options: bool) -> MaskedSolution:
    method = Sparsegpt(**options)
    solution: Solution = method.solve(layer.W_OI, layer.statistics, format_named(format))
    assert isinstance(solution, MaskedSolution)
    return solution


def gram_only(H: Tensor, tokens: int = 1000) -> Statistics:
    return Statistics(tokens=tokens, input_gram=H)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8)])
def test_agrees_with_the_plain_pruning_loop(layer: Layer, n: int, m: int) -> None:
    H = gram(layer.X_TI)
    found = solve(layer, f"sparse{n}of{m}", refit=False)
    plain = pruning_loop(layer.W_OI, H, n, m, 0.01)
    assert ((plain != 0) == found.mask_OI).float().mean() > 0.999
    errors = [quadratic_error(x - layer.W_OI, H) for x in (found.weight(), plain.float())]
    assert errors[0] == pytest.approx(errors[1], rel=0.02)  # found is rounded to bfloat16


@pytest.mark.parametrize("format", ["sparse2of4", "sparse50"])
def test_uncorrelated_inputs_leave_the_kept_values_alone(layer: Layer, format: str) -> None:
    H = torch.diag(torch.linspace(0.1, 3, 192))
    for refit in (False, True):
        solution = Sparsegpt(refit=refit).solve(layer.W_OI, gram_only(H), format_named(format))
        kept = solution.mask_OI
        assert torch.equal(solution.weight()[kept], layer.W_OI.bfloat16().float()[kept])


@pytest.mark.parametrize("format", ["sparse2of4+int4-g32", "sparse2of4+int8", "sparse50+int4"])
def test_two_sweeps_beat_the_joint_one(format: str) -> None:
    layer = synth_layer(0, features=128, tokens=1000)
    two, one = (solve(layer, format, refit=refit).weight() for refit in (True, False))
    assert layer.heldout_error(two) < 0.8 * layer.heldout_error(one)


@pytest.mark.parametrize("refit", [False, True])
def test_rounding_in_a_sweep_beats_rounding_afterwards(refit: bool) -> None:
    layer, format = synth_layer(0, features=128, tokens=1000), format_named("sparse2of4+int3-g32")
    swept = solve(layer, "sparse2of4+int3-g32", refit=refit)
    plain = solve(layer, "sparse2of4", refit=refit)
    values = getattr(format, "values").nearest(plain.values.weight())  # noqa: B009
    rounded = MaskedSolution(mask_OI=plain.mask_OI, values=values)
    assert layer.heldout_error(swept.weight()) < 0.9 * layer.heldout_error(rounded.weight())


def test_inputs_that_never_fired_go_first(layer: Layer) -> None:
    X = layer.X_TI.clone()
    X[:, [0, 5, 60, 61, 62]] = 0
    solution = Sparsegpt().solve(layer.W_OI, gram_only(gram(X)), format_named("sparse2of4"))
    mask = solution.mask_OI
    assert not mask[:, [0, 5]].any()
    group = mask[:, 60:64]  # three are dead and two must stay: the live one, and one of them
    assert group[:, 3].all()


@pytest.mark.parametrize(
    ("statistics", "reason"),
    [
        (Statistics(tokens=0, input_gram=torch.zeros(64, 64)), "no calibration token"),
        (gram_only(torch.full((64, 64), float("nan"))), "Gram holds NaN or infinity"),
    ],
)
def test_what_cannot_be_solved_says_why(statistics: Statistics, reason: str) -> None:
    with pytest.raises(NumericalError, match=reason):
        Sparsegpt().solve(torch.randn(4, 64), statistics, format_named("sparse2of4"))


def test_options_and_formats_out_of_range_are_refused(layer: Layer) -> None:
    with pytest.raises(CandidateError, match="damping"):
        method_named("sparsegpt", (("damping", "0"),))
    with pytest.raises(CandidateError, match="sparse formats"):
        Sparsegpt().solve(layer.W_OI, layer.statistics, format_named("int4"))
    bad = torch.full((4, 192), float("nan"))
    with pytest.raises(NumericalError, match="weight holds NaN"):
        Sparsegpt().solve(bad, layer.statistics, format_named("sparse2of4"))
