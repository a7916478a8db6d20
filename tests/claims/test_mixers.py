"""Claims about sequence mixers, local linear attention and long convolutions; all on made data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from blockwright.attention.local_linear import local_linear_attention
from blockwright.attention.long_convolution import Monarch, fft_convolution
from blockwright.attention.mixers.block_linear import BlockLinear
from blockwright.attention.mixers.gla import Gla
from blockwright.attention.mixers.hippo import legs, normal_part, transfer
from blockwright.attention.mixers.lightning import Lightning, slopes
from blockwright.attention.mixers.ptd import perturbed_modes
from blockwright.attention.mixers.s4d import Modes, S4d, linear_modes
from blockwright.attention.ring import bytes_per_step
from tests.claims.ledger import Grade, claim

FLASH_FFT = "Fu et al., FlashFFTConv, ICLR 2024"
LOCAL_LINEAR = "Zuo et al., Local Linear Attention, 2025"
ROBUST_MODES = "Yu et al., S4-PTD, ICLR 2024"
SIZE = 48
"""State of the HiPPO matrices."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gap(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


@claim(
    method="lightning",
    family="attention",
    paper=Lightning.paper,
    says="chunks behind a state give what the quadratic form gives",
    measures="largest relative difference, 1,000 tokens, 8 heads, chunks of 64 and 256",
    at_most=1e-4,
    grade=Grade.HARD,
)
def test_lightning_is_exact() -> Iterator[float]:
    q, k, v = (normal(1, 8, 1000, 32, seed=seed) for seed in range(3))
    mixer = Lightning(slopes=slopes(8))
    whole = mixer.parallel(q, k, v)
    for size in (64, 256):
        yield gap(mixer.forward(q, k, v, size=size)[0], whole)


@claim(
    method="gla",
    family="attention",
    paper=Gla.paper,
    says="sub-chunks give what the recurrence gives where dividing by the gates' product overflows",
    measures="largest relative difference to single steps, gates down to 1e-3, 256 tokens",
    at_most=1e-4,
    grade=Grade.HARD,
)
def test_gla_is_exact_where_gates_close() -> float:
    mixer, streams = Gla(), closing_gates()
    state, outputs = mixer.start(*streams), []
    for token in zip(*(stream.split(1, dim=2) for stream in streams), strict=True):
        output, state = mixer.step(state, *token)
        outputs.append(output)
    return gap(mixer.forward(*streams, size=64)[0], torch.cat(outputs, dim=2))


@claim(
    method="gla",
    family="attention",
    paper=Gla.paper,
    says="dividing keys by the gates' product overflows",
    measures="share of a chunk's scores that are not finite so, gates down to 1e-3, 64 tokens",
    at_least=0.1,
    grade=Grade.HARD,
)
def test_dividing_by_the_product_of_gates_overflows() -> float:
    q, k, _, log_alpha = (stream[:, :, :64] for stream in closing_gates())
    b = log_alpha.cumsum(2)
    scores = (q * b.exp()) @ (k * (-b).exp()).mT
    return 1 - float(torch.isfinite(scores).float().mean())


def closing_gates() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q, k, v = (normal(1, 2, 256, 16, seed=seed) for seed in range(3))
    uniform = torch.rand(1, 2, 256, 16, generator=torch.Generator().manual_seed(3))
    return q, k, v, math.log(1e-3) * uniform


@pytest.mark.slow
@claim(
    method="gla",
    family="attention",
    paper=Gla.paper,
    says="the GPU kernel of flash-linear-attention gives what the chunks give",
    measures="largest relative difference, 1,000 tokens, 4 heads of 64: GLA, then Lightning",
    at_most=1e-2,
    grade=Grade.HARDWARE,
)
def test_the_gpu_kernels_give_what_chunks_give() -> Iterator[float]:
    if not torch.cuda.is_available() or find_spec("fla") is None:
        pytest.skip("needs a GPU and flash-linear-attention")
    q, k, v, x = (normal(1, 4, 1000, 64, seed=seed).cuda() for seed in range(4))
    for mixer, streams in (
        (Gla(), (q, k, v, F.logsigmoid(x) / 16)),
        (Lightning(slopes=slopes(4)), (q, k, v)),
    ):
        expected = mixer.forward(*(stream.cpu() for stream in streams), size=64)[0]
        yield gap(mixer.forward(*streams, size=64)[0].cpu(), expected)


@claim(
    method="block_linear",
    family="attention",
    paper=BlockLinear.paper,
    says="two sums that do not grow stand for the whole past",
    measures="largest relative difference to the masked quadratic form, blocks of 1, 4 and all",
    at_most=1e-4,
    grade=Grade.HARD,
)
def test_block_linear_attention_is_exact() -> Iterator[float]:
    q, k = (normal(1, 4, 96, 16, seed=seed).relu() for seed in range(2))
    v = normal(1, 4, 96, 16, seed=2)
    for block in (1, 4, 96):
        mixer = BlockLinear(block=block)
        streams = (q, k, v, q.flip(-1), k.flip(-1))
        yield gap(mixer.forward(*streams, size=block)[0], mixer.parallel(*streams))


@claim(
    method="s4d",
    family="attention",
    paper=S4d.paper,
    says="the convolution is the recurrence",
    measures="largest relative difference, 512 tokens, 32 modes, 8 channels",
    at_most=1e-4,
    grade=Grade.HARD,
)
def test_the_convolution_is_the_recurrence() -> float:
    mixer, u = S4d(modes=Modes.drawn(linear_modes(32), 8, seed=0)), normal(1, 8, 512)
    state, outputs = mixer.start(u), []
    for token in u.split(1, dim=2):
        output, state = mixer.step(state, token)
        outputs.append(output)
    return gap(torch.cat(outputs, dim=2), mixer.parallel(u))


@claim(
    method="s4d",
    family="attention",
    paper=S4d.paper,
    says="the normal part with half the input comes near HiPPO-LegS as the state grows",
    measures="gap of the first 8 basis functions on [0.05, 2], size 256 / size 64",
    at_most=0.5,
    grade=Grade.FIRM,
)
def test_the_normal_part_comes_near_legs() -> float:
    return basis_gap(256) / basis_gap(64)


def basis_gap(size: int) -> float:
    """Relative to the basis of HiPPO-LegS."""
    A, b = legs(size)
    normal_A, exact, near = normal_part(size), [], []
    for time in torch.linspace(0.05, 2, 14, dtype=torch.float64):
        exact.append((torch.linalg.matrix_exp(time * A) @ b)[:8])
        near.append((torch.linalg.matrix_exp(time * normal_A) @ b / 2)[:8])
    expected = torch.stack(exact)
    return float((torch.stack(near) - expected).norm() / expected.norm())


@pytest.mark.slow
@claim(
    method="s4d",
    family="attention",
    paper=S4d.paper,
    says="it learns to remember 64 tokens, which modes that do not turn cannot",
    measures="squared error of copying noise 64 tokens late, 300 steps; then 0.1 + S4D-Lin's less "
    "that of real modes",
    at_most=0.1,
    grade=Grade.SOFT,
)
def test_it_learns_a_delayed_copy() -> Iterator[float]:
    turning, real = copy_error(linear_modes(16)), copy_error(torch.full((16,), -0.5 + 0j))
    yield turning
    yield 0.1 + turning - real


def copy_error(A: Tensor, channels: int = 32, delay: int = 64, tokens: int = 256) -> float:
    """Mean squared error on unseen noise of the mean over channels, steps and C being trained."""
    drawn = Modes.drawn(A, channels, seed=0)
    speed, C = drawn.dt.log().requires_grad_(), torch.view_as_real(drawn.C).requires_grad_()
    optimizer = torch.optim.Adam([{"params": [C], "lr": 0.05}, {"params": [speed], "lr": 1e-3}])

    def error(seed: int) -> Tensor:
        modes = replace(
            drawn, dt=speed.exp(), C=torch.view_as_complex(C), skip=torch.zeros(channels)
        )
        u = normal(8, 1, tokens, seed=seed)
        y = S4d(modes=modes).parallel(u.expand(-1, channels, -1)).mean(1, keepdim=True)
        return (y[..., delay:] - u[..., :-delay]).square().mean()

    for step in range(300):
        optimizer.zero_grad()
        loss = error(step)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return float(error(1000))


@claim(
    method="ptd",
    family="attention",
    paper=ROBUST_MODES,
    says="HiPPO-LegS has no usable eigenvectors",
    measures="condition of its eigenvectors, size 48",
    at_least=1e12,
    grade=Grade.HARD,
)
def test_legs_cannot_be_diagonalized() -> float:
    return float(torch.linalg.cond(torch.linalg.eig(legs(SIZE)[0])[1]))


@claim(
    method="ptd",
    family="attention",
    paper=ROBUST_MODES,
    says="a perturbed one has",
    measures="condition of the eigenvectors, size 48, perturbed by 1e-3",
    at_most=1e4,
    grade=Grade.FIRM,
)
def test_perturbed_it_can(seed: int) -> float:
    return float(torch.linalg.cond(perturbed_modes(SIZE, seed=seed)[2]))


@claim(
    method="ptd",
    family="attention",
    paper=ROBUST_MODES,
    says="its transfer function is uniformly close, that of the normal part is not",
    measures="largest gap to HiPPO-LegS over frequencies, perturbed / normal part, size 48",
    at_most=0.1,
    grade=Grade.FIRM,
)
def test_the_perturbed_transfer_function_is_close(seed: int) -> float:
    A, b = legs(SIZE)
    output = normal(SIZE, seed=seed).double()
    values, vectors = torch.linalg.eig(normal_part(SIZE))
    # the normal part's spikes are where its modes are
    grid = torch.cat([torch.linspace(0, 2000, 1000).double(), torch.logspace(3, 5, 100).double()])
    frequencies = torch.cat([grid, values.imag.abs()])
    exact = transfer(A, b, output, frequencies)
    L, right, V = perturbed_modes(SIZE, seed=seed)
    near = transfer(L, right, output.to(V.dtype) @ V, frequencies)
    half = torch.linalg.solve(vectors, (b / 2).to(vectors.dtype))
    diagonal = transfer(values, half, output.to(vectors.dtype) @ vectors, frequencies)
    return float((near - exact).abs().max() / (diagonal - exact).abs().max())


@pytest.mark.slow
@claim(
    method="ptd",
    family="attention",
    paper=ROBUST_MODES,
    says="noise of one frequency passes through a perturbed matrix as through the exact one",
    measures="output error of the normal part over that of perturbed modes, a sine at the spike",
    at_least=5,
    grade=Grade.FIRM,
)
def test_perturbed_modes_are_robust_to_a_sine(seed: int) -> float:
    A, b = legs(SIZE)
    output = normal(SIZE, seed=seed).double()
    values, vectors = torch.linalg.eig(normal_part(SIZE))
    spike = float(values.imag.abs().max())
    L, right, V = perturbed_modes(SIZE, seed=seed)
    half = torch.linalg.solve(vectors, (b / 2).to(vectors.dtype))
    exact = driven(A.to(V.dtype), b.to(V.dtype), output.to(V.dtype), spike)
    near = driven(torch.diag(L), right, output.to(V.dtype) @ V, spike)
    diagonal = driven(torch.diag(values), half, output.to(V.dtype) @ vectors, spike)
    return float((diagonal - exact).norm() / (near - exact).norm())


def driven(A: Tensor, b: Tensor, c: Tensor, frequency: float, tokens: int = 4000) -> Tensor:
    """c x of dx/dt = A x + b sin(frequency t), held between tokens, when the start is forgotten."""
    step = 0.4 / frequency
    A_bar = torch.linalg.matrix_exp(step * A)
    b_bar = torch.linalg.solve(A, (A_bar - torch.eye(len(A), dtype=A.dtype)) @ b)
    x, found = torch.zeros_like(b), []
    for u in torch.sin(0.4 * torch.arange(tokens).double()).tolist():
        x = A_bar @ x + b_bar * u
        found.append(c @ x)
    return torch.stack(found[tokens // 2 :]).real


@claim(
    method="flashfftconv",
    family="attention",
    paper=FLASH_FFT,
    says="dense products give the same convolution",
    measures="relative difference to the FFT, transforms of 256, 1,024, 4,096 and 8,192",
    at_most=1e-5,
    grade=Grade.HARD,
)
def test_monarch_products_are_the_fft() -> Iterator[float]:
    for rows, columns in ((16, 16), (64, 16), (32, 128), (128, 64)):
        tokens = rows * columns // 2
        u, k = normal(1, 2, tokens), normal(2, tokens, seed=1)
        expected = fft_convolution(u, k)
        yield float((Monarch(rows, columns).convolve(u, k) - expected).norm() / expected.norm())


@claim(
    method="flashfftconv",
    family="attention",
    paper=FLASH_FFT,
    says="smooth filters need few frequencies",
    measures="relative error of a Gaussian bump of 40 taps, a quarter of 4,096 frequencies kept",
    at_most=1e-3,
    grade=Grade.FIRM,
)
def test_a_smooth_filter_needs_few_frequencies() -> float:
    return low_pass_error(torch.exp(-0.5 * ((torch.arange(2048) - 400) / 40.0) ** 2))


@claim(
    method="flashfftconv",
    family="attention",
    paper=FLASH_FFT,
    says="random filters need all",
    measures="relative error of a random filter, a quarter of 4,096 frequencies kept",
    at_least=0.5,
    grade=Grade.FIRM,
)
def test_a_random_filter_needs_all_frequencies() -> float:
    return low_pass_error(normal(2048, seed=1))


def low_pass_error(taps: Tensor) -> float:
    u, k = normal(1, 1, 2048), taps[None]
    expected = fft_convolution(u, k)
    found = Monarch(64, 64, kept=8).convolve(u, k)
    return float((found - expected).norm() / expected.norm())


@claim(
    method="local_linear",
    family="attention",
    paper=LOCAL_LINEAR,
    says="values that are affine in the keys are found exactly, softmax misses them",
    measures="largest error, ridge 0.01, 200 keys, 6 wide, values of size 1",
    at_most=1e-3,
    grade=Grade.FIRM,
)
def test_affine_values_are_found() -> float:
    q, k = normal(1, 1, 200, 6), normal(1, 1, 200, 6, seed=1)
    slope, offset = normal(6, 4, seed=2), normal(4, seed=3)
    options = {"scale": 0.3, "ridge": 1e-2, "causal": False, "iterations": 64}
    found = local_linear_attention(q, k, k @ slope + offset, **options)  # type: ignore[arg-type]
    return gap(found, q @ slope + offset)


@claim(
    method="local_linear",
    family="attention",
    paper=LOCAL_LINEAR,
    says="it regresses better than a weighted mean",
    measures="squared error / that of softmax attention, smooth 2-D function, 512 noisy samples,"
    " best bandwidths, mean of six draws",
    at_most=0.5,
    grade=Grade.FIRM,
)
def test_it_regresses_better_than_softmax() -> float:
    return sum(error[0] for error in map(regression_errors, range(6))) / 6


@claim(
    method="local_linear",
    family="attention",
    paper=LOCAL_LINEAR,
    says="it regresses far better than one linear map",
    measures="squared error / that of least squares, smooth 2-D function, 512 noisy samples, worst"
    " of six draws",
    at_most=0.1,
    grade=Grade.FIRM,
)
def test_it_regresses_better_than_one_linear_map() -> float:
    return max(error[1] for error in map(regression_errors, range(6)))


@cache
def regression_errors(seed: int) -> tuple[float, float]:
    """The least squared error over bandwidths, against that of softmax attention and against that
    of a linear map."""
    draw = torch.Generator().manual_seed(seed)
    keys, queries = (2 * torch.rand(1, 1, n, 2, generator=draw) - 1 for n in (512, 400))
    noisy = smooth(keys) + 0.1 * torch.randn(1, 1, 512, 1, generator=draw)
    # |q - k|^2 = 2 - 2 q k on a sphere: a kernel of the distance
    lifted_k, lifted_q = on_sphere(keys), on_sphere(queries)
    softmax, fitted = [], []
    for scale in (12.5, 25.0, 50.0, 100.0, 200.0, 400.0, 800.0):
        mean = F.scaled_dot_product_attention(lifted_q, lifted_k, noisy, scale=scale)
        local = local_linear_attention(
            lifted_q, lifted_k, noisy, scale=scale, ridge=1e-3, causal=False
        )
        softmax.append(float((mean - smooth(queries)).square().mean()))
        fitted.append(float((local - smooth(queries)).square().mean()))
    affine_k, affine_q = (F.pad(x[0, 0], (0, 1), value=1.0) for x in (keys, queries))
    line = affine_q @ torch.linalg.lstsq(affine_k, noisy[0, 0]).solution
    straight = float((line - smooth(queries)[0, 0]).square().mean())
    return min(fitted) / min(softmax), min(fitted) / straight


def smooth(x: Tensor) -> Tensor:
    """[..., 2] -> [..., 1]"""
    return torch.sin(3 * x[..., :1]) + x[..., 1:] ** 2 + x[..., :1] * x[..., 1:]


def on_sphere(x: Tensor) -> Tensor:
    """Points of a small cap, so that distances are those of the plane, nearly."""
    near = 0.5 * x
    return torch.cat([near, (1 - near.square().sum(-1, keepdim=True)).sqrt()], dim=-1)


@claim(
    method="token_ring",
    family="attention",
    paper="Wang et al., TokenRing, 2024",
    says="the busier direction of a link carries half of what Ring Attention's does",
    measures="bytes per step / those of the ring of keys, a head of keys for every query head",
    at_most=0.55,
    grade=Grade.HARD,
)
def test_token_ring_halves_the_busier_direction() -> float:
    q = torch.zeros(1, 8, 4, 128)
    sent = bytes_per_step(q, q, q)
    return sent["queries"] / sent["keys"]
