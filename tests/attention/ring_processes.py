"""Run by ``test_ring`` in several processes: ``RANK SIZE RENDEZVOUS``; prints JSON on rank 0."""

from __future__ import annotations

import json
import sys
from itertools import product

import torch
import torch.distributed as dist

from blockwright.attention import Layout
from blockwright.attention.engines.cpu import attend_dense
from blockwright.attention.ring import Link, bytes_per_step, ring_attention, shard, zigzag

TOKENS, D, V = 50, 8, 6


def compared(link: Link, *, group_size: int, causal: bool, schedule: str) -> dict[str, object]:
    """The largest difference from one process, and the bytes that were sent."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((4, D), (4 // group_size, D), (4 // group_size, V))
    q, k, v = (torch.randn(2, heads, TOKENS, n, generator=generator) for heads, n in sizes)
    layout = Layout.plain(TOKENS, TOKENS, causal=causal)
    positions = zigzag(TOKENS, link.size)[link.rank]
    expected = shard(attend_dense(q, k, v, layout, D**-0.5).output, positions)
    q, k, v = (shard(x, positions) for x in (q, k, v))
    link = Link.of(link.group)
    found = ring_attention(q, k, v, tokens=TOKENS, link=link, causal=causal, schedule=schedule)
    here = positions >= 0
    return {
        "difference": float((found - expected)[:, :, here].abs().max()),
        "sent": link.sent_bytes,
        "per_step": bytes_per_step(q, k, v),
        "steps": link.size - 1,
    }


def main(rank: int, size: int, rendezvous: str) -> None:
    """All cases on the whole group and on its first 2 and 3 processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=size)
    found = {}
    for members in (2, 3, size):
        group = dist.new_group(list(range(members)))
        if rank >= members:
            continue
        for group_size, causal, schedule in product((1, 4), (True, False), ("queries", "keys")):
            name = f"{members} processes, {group_size} heads, causal {causal}, {schedule}"
            mine = compared(Link.of(group), group_size=group_size, causal=causal, schedule=schedule)
            every = [mine] * members
            dist.all_gather_object(every, mine, group=group)
            found[name] = every
    if rank == 0:
        print(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
