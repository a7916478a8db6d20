"""Claims about formats of codebooks.  Errors are squared errors of the weights, rounded to nearest
with ranges as wide as the weights.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from blockwright.formats.dyn import DynFormat
from blockwright.formats.fp import FpFormat
from blockwright.formats.nf import NfFormat, normal_float
from blockwright.methods.quantize.rtn import Rtn
from blockwright.numerics.codebooks import dynamic_codebook
from blockwright.numerics.double_scales import CHUNK, DoubleScales
from blockwright.numerics.ranges import fit_range, quantize
from blockwright.registry import format_named
from blockwright.types import Statistics
from tests.claims.ledger import Grade, claim

PUBLISHED_NF4 = (
    *(-1, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0),
    *(0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1),
)


def normal(seed: int) -> Tensor:
    return torch.randn(256, 1024, generator=torch.Generator().manual_seed(seed))


def student(seed: int, degrees: int = 4) -> Tensor:
    """Student's t: heavy tails."""
    draws = torch.randn(degrees + 1, 256, 1024, generator=torch.Generator().manual_seed(seed))
    return draws[0] / draws[1:].square().mean(0).sqrt()


def error(name: str, W: Tensor) -> float:
    D = Rtn().solve(W, Statistics(tokens=0), format_named(name)).weight() - W
    return float(D.double().square().mean())


# -- card 5, NF4


@claim(
    method="nf",
    says="the 16 values are the published quantiles",
    measures="largest difference from the table of the authors' code",
    grade=Grade.HARD,
    at_most=1e-4,
)
def test_nf4_has_the_published_values() -> float:
    pairs = zip(normal_float(4).values, PUBLISHED_NF4, strict=True)
    return max(abs(ours - theirs) for ours, theirs in pairs)


@claim(
    method="nf",
    says="on normal weights nf4 beats the symmetric integer grid",
    measures="error of nf4-g64 / that of int4-g64-sym, normal [256, 1024]",
    grade=Grade.FIRM,
    at_most=0.8,
)
def test_nf4_beats_symmetric_integers(seed: int) -> float:
    return error("nf4-g64", normal(seed)) / error("int4-g64-sym", normal(seed))


@claim(
    method="nf",
    says="on normal weights nf4 only ties with the asymmetric integer grid, at 0.06 bits less",
    measures="error of nf4-g64 / that of int4-g64, normal [256, 1024]",
    grade=Grade.FIRM,
    at_least=0.92,
    at_most=1.08,
)
def test_nf4_ties_with_asymmetric_integers(seed: int) -> float:
    return error("nf4-g64", normal(seed)) / error("int4-g64", normal(seed))


@claim(
    method="nf",
    says="on heavy tails nf4 beats the asymmetric integer grid",
    measures="error of nf4-g64 / that of int4-g64, student-t(4) [256, 1024]",
    grade=Grade.FIRM,
    at_most=0.95,
)
def test_nf4_wins_on_heavy_tails(seed: int) -> float:
    return error("nf4-g64", student(seed)) / error("int4-g64", student(seed))


@claim(
    method="nf",
    says="double quantization moves no scale by more than a step, and costs next to nothing",
    measures="largest move of a scale / (range / 255); error of -dq / without - 1, nf4-g64",
    grade=Grade.HARD,
    at_least=-0.01,
    at_most=1,
)
def test_double_quantization_keeps_scales(seed: int) -> Iterator[float]:
    W = normal(seed)
    scale_OG = NfFormat(4, 64).fit_grid(W).scale
    moved = (DoubleScales.nearest(scale_OG).scale() - scale_OG).abs().view(-1, CHUNK, 16)
    low, high = scale_OG.view(-1, CHUNK, 16).aminmax(dim=1)
    yield float((moved.amax(1) / ((high - low) / 255)).max())
    yield error("nf4-g64-dq", W) / error("nf4-g64", W) - 1


# -- card 31, small floats


@claim(
    method="fp",
    says="on heavy tails floats beat symmetric integers of equal bits",
    measures="error of fp-e2m1 / int4-sym and fp-e2m3 / int6-sym, g64, student-t(4) [256, 1024]",
    grade=Grade.FIRM,
    at_most=0.65,
)
def test_floats_win_on_heavy_tails(seed: int) -> Iterator[float]:
    W = student(seed)
    yield error("fp-e2m1-g64", W) / error("int4-g64-sym", W)
    yield error("fp-e2m3-g64", W) / error("int6-g64-sym", W)


@claim(
    method="fp",
    says="on normal weights they tie",
    measures="error of fp-e2m1 / int4-sym and fp-e2m3 / int6-sym, g64, normal [256, 1024]",
    grade=Grade.FIRM,
    at_least=0.85,
    at_most=1.15,
)
def test_floats_tie_on_normal_weights(seed: int) -> Iterator[float]:
    W = normal(seed)
    yield error("fp-e2m1-g64", W) / error("int4-g64-sym", W)
    yield error("fp-e2m3-g64", W) / error("int6-g64-sym", W)


@claim(
    method="fp",
    says="codes are the bits of the numbers: those of float8_e4m3fn, where it has a number",
    measures="values that differ from torch's, all 256 codes but torch's two NaN",
    grade=Grade.HARD,
    at_most=0,
)
def test_e4m3_is_torchs() -> float:
    torchs = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    ours = torch.tensor(FpFormat(4, 3, 0).codebook.values)
    return float((ours != torchs)[torchs.isfinite()].sum())


# -- card 30, the dynamic type


def second_moments(seed: int) -> Tensor:
    """Log-normal, three standard deviations up and down make six decades; in groups of 256."""
    random = torch.Generator().manual_seed(seed)
    return 10.0 ** torch.randn(256, 256, generator=random)


@claim(
    method="dyn",
    says="positive numbers of six decades keep a relative precision",
    measures="median relative error, log-normal [256, 256] in groups of 256, unsigned values",
    grade=Grade.FIRM,
    at_most=0.05,
)
def test_dynamic_values_keep_relative_precision(seed: int) -> float:
    v, codebook = second_moments(seed), dynamic_codebook(signed=False)
    scale = v.amax(1, keepdim=True)
    found = codebook.decode(codebook.encode(v / scale)) * scale
    return float(((found - v).abs() / v).median())


@claim(
    method="dyn",
    says="where uniform steps make most of them zero",
    measures="share of zeros, the same numbers on 256 uniform steps of each group",
    grade=Grade.FIRM,
    at_least=0.5,
)
def test_uniform_steps_make_small_numbers_zero(seed: int) -> float:
    v = second_moments(seed)
    scale, zero_point = (each[:, None] for each in fit_range(v, 8, symmetric=False))
    return float((quantize(v, scale, zero_point, 256) == zero_point).float().mean())


@claim(
    method="dyn",
    says="as a weight format it has more error than int8: weights do not span decades",
    measures="error of dyn8-g128 / that of int8-g128-sym, normal [256, 1024]",
    grade=Grade.FIRM,
    at_least=1.5,
    at_most=4,
)
def test_dynamic_weights_have_more_error_than_int8(seed: int) -> float:
    return error(DynFormat(128).name, normal(seed)) / error("int8-g128-sym", normal(seed))
