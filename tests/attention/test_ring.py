"""Ring schedules in several processes give what one process gives; what they send is counted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from blockwright.attention.layout import PADDING
from blockwright.attention.ring import Link, bytes_per_step, ring_attention, shard, zigzag
from blockwright.errors import AttentionError

PROCESSES = 4


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Of every case, what every rank found."""
    rendezvous = (tmp_path_factory.mktemp("ring") / "store").as_uri()
    command = [sys.executable, "-m", "tests.attention.ring_processes"]
    root = Path(__file__).resolve().parents[2]
    running = [
        subprocess.Popen(
            [*command, str(rank), str(PROCESSES), rendezvous],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=root,
        )
        for rank in range(PROCESSES)
    ]
    answers = [process.communicate(timeout=300) for process in running]
    assert not any(process.returncode for process in running), answers
    cases: dict[str, list[dict[str, Any]]] = json.loads(answers[0][0])
    return cases


def test_two_three_and_four_processes_give_what_one_gives(
    found: dict[str, list[dict[str, Any]]],
) -> None:
    assert len(found) == 24
    assert max(rank["difference"] for ranks in found.values() for rank in ranks) <= 1e-5


def test_bytes_are_those_of_the_formulas(found: dict[str, list[dict[str, Any]]]) -> None:
    for name, ranks in found.items():
        for rank in ranks:
            most = rank["per_step"]["queries" if "queries" in name else "keys"] * rank["steps"]
            assert max(rank["sent"].values()) <= most
            if "keys" in name:
                assert rank["sent"] == {"forward": most, "back": 0}


def test_with_a_head_of_keys_for_every_query_the_busier_direction_carries_half() -> None:
    q = torch.zeros(1, 4, 8, 64)
    own, shared = bytes_per_step(q, q, q), bytes_per_step(q, q[:, :1], q[:, :1])
    assert own["queries"] <= 0.55 * own["keys"]
    assert shared["keys"] < shared["queries"]


def test_zigzag_gives_every_token_to_one_rank_and_even_work() -> None:
    positions = zigzag(50, 4)
    assert {len(own) for own in positions} == {14}
    every = torch.cat(positions)
    assert sorted(every[every != PADDING].tolist()) == list(range(50))
    work = [int((own[own != PADDING] + 1).sum()) for own in zigzag(64, 4)]
    assert len(set(work)) == 1
    rows = shard(torch.arange(50.0)[:, None], positions[0])
    assert torch.equal(rows[:, 0], positions[0].clamp(min=0).float())


def test_one_process_needs_no_messages() -> None:
    q = torch.randn(1, 2, 8, 4)
    alone = ring_attention(q, q, q, tokens=8, link=Link(0, 1))
    order = zigzag(8, 1)[0]
    expected = torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
    torch.testing.assert_close(alone, expected[:, :, order])


def test_what_it_cannot_do_is_refused() -> None:
    q = torch.randn(1, 2, 8, 4)
    link = Link(0, 2)
    with pytest.raises(AttentionError, match="make 4 slots each, got 8 queries"):
        ring_attention(q, q, q, tokens=8, link=link)
    with pytest.raises(AttentionError, match="unknown schedule 'both'; there are auto, queries"):
        ring_attention(q, q, q, tokens=16, link=link, schedule="both")
    with pytest.raises(AttentionError, match="no backward pass"):
        ring_attention(q.requires_grad_(), q, q, tokens=16, link=link)
