"""Claims about CFSP: widths, channels, and the bundled model with 30% of its channels gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial

import pytest
import torch
from torch import Tensor, nn

from blockwright.numerics.channel_importance import channel_scores, turning, widths
from blockwright.numerics.losses import quadratic_error
from blockwright.numerics.masked_refit import damped, masked_refit
from tests.claims.ledger import Grade, claim
from tests.claims.test_armor import block_of, bundled, token_ids
from tests.layers import gram, outlier_layer, synth_layer

PAPER = "Wang et al., CFSP, COLING 2025"
SHARE, MULTIPLE = 0.7, 16
BLOCKS = range(8)
Keep = Callable[[int], Tensor]
"""Block -> kept channels."""


@claim(
    method="cfsp",
    family="width",
    paper=PAPER,
    says="widths add up to the share that was asked for, to one step",
    measures="|sum of widths - share| / step, 8 to 48 random blocks, shares of 20% to 90%",
    grade=Grade.HARD,
    at_most=1,
)
def test_cfsp_widths_add_up(seed: int) -> Iterator[float]:
    random = torch.Generator().manual_seed(seed)
    for blocks in (8, 22, 48):
        importance = torch.rand(blocks, generator=random).square().tolist()
        for share in (0.2, 0.5, 0.7, 0.9):
            total = sum(widths(importance, share, 5632, 128))
            yield abs(total - share * blocks * 5632) / 128


@claim(
    method="cfsp",
    family="width",
    paper=PAPER,
    says="what stays of the last matrix, fitted again, loses no more than when it is cut alone",
    measures="L(refit) / L(cut), damped H, half of the inputs, synth- and outlier-layer",
    grade=Grade.HARD,
    at_most=1,
)
def test_the_refit_never_loses(seed: int) -> Iterator[float]:
    for layer in (synth_layer(seed), outlier_layer(seed)):
        H = gram(layer.X_TI)
        order = H.diagonal().sqrt().sort(descending=True, stable=True).indices
        mask = torch.zeros(256, dtype=torch.bool).index_fill(0, order[:128], True)
        mask_OI, Hd = mask.expand(256, -1), damped(H, 0.01)
        refitted = masked_refit(layer.W_OI, H, mask_OI, 0.01)
        cut = layer.W_OI * mask_OI
        errors = [quadratic_error(W - layer.W_OI, Hd) for W in (refitted, cut)]
        yield errors[0] / errors[1]


def weight(block: int, name: str) -> Tensor:
    return block_of(block).get_submodule(f"mlp.{name}_proj").get_parameter("weight").detach()


@cache
def seen() -> tuple[list[float], list[Tensor]]:
    """How far every block turns its tokens, and the rms of its channels: one forward."""
    angles, rms = [0.0] * 8, [torch.empty(0)] * 8

    def turn(b: int, module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        angles[b] = turning(given[0].flatten(0, 1), output.flatten(0, 1))

    def scale(b: int, module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        rms[b] = given[0].flatten(0, 1).square().mean(0).sqrt()

    handles = [block_of(b).register_forward_hook(partial(turn, b)) for b in BLOCKS]
    handles += [
        block_of(b).get_submodule("mlp.down_proj").register_forward_hook(partial(scale, b))
        for b in BLOCKS
    ]
    try:
        with torch.no_grad():
            bundled()(token_ids("calibration", 32))
    finally:
        for handle in handles:
            handle.remove()
    return angles, rms


def loss_with(keep: Keep) -> float:
    """Nats per held-out token, the other channels at zero: that is, sliced away."""

    def silence(kept: Tensor, module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (given[0] * torch.zeros(given[0].shape[-1]).index_fill(0, kept, 1.0),)

    downs = [block_of(b).get_submodule("mlp.down_proj") for b in BLOCKS]
    handles = [
        down.register_forward_pre_hook(partial(silence, keep(b))) for b, down in enumerate(downs)
    ]
    ids = token_ids("heldout", 16)
    try:
        with torch.no_grad():
            return float(bundled()(ids, labels=ids).loss)
    finally:
        for handle in handles:
            handle.remove()


def largest(score: Tensor, count: int) -> Tensor:
    return score.sort(descending=True, stable=True).indices[:count]


def by_cfsp(block: int, *, relative: bool = True) -> Tensor:
    angles, rms = seen()
    readers = (weight(block, "up"), weight(block, "gate"))
    score = channel_scores(weight(block, "down"), readers, rms[block], relative=relative)
    return largest(score, widths(angles, SHARE, 640, MULTIPLE)[block])


@pytest.mark.slow
@claim(
    method="cfsp",
    family="width",
    paper=PAPER,
    says="its channels are better than random ones, and than the largest columns at equal widths",
    measures="added loss / that of random channels, and / that of |Wd| at uniform widths,"
    " bundled model, 30% of all channels gone, no refit, 8k calibration, 4k held-out tokens",
    grade=Grade.SOFT,
    at_most=1.0,
)
def test_cfsp_beats_random_and_magnitude(seed: int) -> Iterator[float]:
    random = torch.Generator().manual_seed(seed)
    original = loss_with(lambda b: torch.arange(640))
    mine = loss_with(by_cfsp) - original
    yield mine / (loss_with(lambda b: torch.randperm(640, generator=random)[:448]) - original)
    yield mine / (loss_with(lambda b: largest(weight(b, "down").norm(dim=0), 448)) - original)
