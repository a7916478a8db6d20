"""Lpvit: blocks by the second-order model, exhaustively, and where it is Wanda."""

from __future__ import annotations

from itertools import combinations

import torch

from blockwright.methods.sparsify.lpvit import Lpvit
from blockwright.methods.sparsify.wanda import Wanda
from blockwright.registry import format_named
from blockwright.types import Statistics
from tests.layers import gram, synth_layer

LAYER = synth_layer(0, features=32, tokens=400)


def statistics(G_O: torch.Tensor) -> Statistics:
    return Statistics(tokens=400, input_gram=gram(LAYER.X_TI), output_gradient=G_O)


def test_no_other_blocks_of_a_panel_lose_less_by_the_model() -> None:
    G = torch.linspace(0, 3, 32)
    format = format_named("panel16x4-50")
    mask = Lpvit(refit=False).solve(LAYER.W_OI, statistics(G), format).mask_OI
    cost = G[:, None] * LAYER.W_OI.square() * gram(LAYER.X_TI).diagonal()
    for panel, kept in zip(cost.view(2, 16, 32), mask.view(2, 16, 32), strict=True):
        blocks = panel.sum(0).view(8, 4).sum(1)
        least = min(float(blocks[list(gone)].sum()) for gone in combinations(range(8), 4))
        assert torch.allclose(panel[~kept].sum(), torch.tensor(least))


def test_where_rows_decide_alone_or_count_alike_it_is_wanda() -> None:
    for name, G in (("sparse50", torch.linspace(0.1, 3, 32)), ("panel16-50", torch.ones(32))):
        format = format_named(name)
        found = Lpvit().solve(LAYER.W_OI, statistics(G), format)
        wanda = Wanda().solve(LAYER.W_OI, statistics(G), format)
        assert torch.equal(found.weight(), wanda.weight())
