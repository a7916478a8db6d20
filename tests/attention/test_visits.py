"""What a block visits is seen while its model reads, in few cells."""

from __future__ import annotations

import pytest
import torch

from blockwright.attention import huggingface as plug
from blockwright.attention.visits import CELLS, BlockVisits
from blockwright.attention.watching import watched
from tests.models import random_model


@pytest.mark.parametrize(
    "policy",
    [
        "mean@query_block=8,key_block=8,keep=3",
        "moba@block=8,keep=2",
        "dense",
        "pbs@block=8,segment=16",
    ],
)
def test_cells_add_up_to_the_density(policy: str) -> None:
    model = random_model("llama")
    plug.use_attention(model, policy)
    visits = BlockVisits(1)
    with torch.no_grad(), watched(visits):
        model(torch.randint(3, 128, (2, 100), generator=torch.Generator().manual_seed(0)))
    assert len(visits.heads) == 4
    for head in visits.heads:
        assert len(head.cells) <= CELLS
        assert 0 < head.density <= 1
        assert 0 < head.recall <= 1 + 1e-6
        some = [share for row in head.cells for share in row if share is not None]
        assert 0 < sum(some) / len(some) <= 1
        assert head.cells[0][0] == 1
        assert head.cells[0][-1] is None


def test_dense_attention_visits_everything() -> None:
    model = random_model("llama")
    plug.use_attention(model, "dense")
    visits = BlockVisits(0)
    with torch.no_grad(), watched(visits):
        model(torch.arange(3, 103)[None])
    assert {(head.density, head.recall) for head in visits.heads} == {(1.0, 1.0)}
