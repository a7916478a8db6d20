"""Attention over a sequence that several processes share, each with its part of the tokens.

Paper:   Wang, Fang, Chen, Zhang et al., "TokenRing: An Efficient Parallelism Framework for
         Infinite-Context LLMs via Bidirectional Communication", 2024 (code:
         ACA-Lab-SJTU/token-ring).  Liu, Zaharia, Abbeel, "Ring Attention", 2023.
Idea:    Ring Attention hands keys and values on, all in one direction.  TokenRing leaves them at
         home, hands queries on, and sends partial results straight back to their owners, so that
         both directions of every link carry something, and each less.  Where several query heads
         share keys, keys are the smaller message, and the ring of keys is taken.

Equations -> code
    step t   rank r holds Q of rank r - t, attends over its own keys             TokenRing
             and sends what it found at step t - 1 to rank r - t + 1
    step t   rank r holds K, V of rank r - t                                     KeyRing
    merge    by log-sum-exp                                                      partial.merge
    zigzag   of 2 P chunks rank r owns r and 2 P - 1 - r: causal work is even,   zigzag
             and a step needs all queries on half of the keys, or half on all
Shapes:  P processes; of N tokens each has n = 2 ceil(N / 2P) slots, empty ones at the end.
         q [B, H, n, D], k [B, K, n, D], v [B, K, n, V], K divides H.
Units:   bytes sent per step and process: queries H D n forward and H (V + 1) n back, in fp32 (bf16
         on the wire would lose digits at every merge); keys K (D + V) n.
Differs: 1. Queries travel whole; what returns is only what a step computed.
         2. No backward pass: training takes another route.
Raises:  AttentionError for gradients, shapes, or a schedule that does not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from blockwright.attention.engines.cpu import attend_dense
from blockwright.attention.layout import PADDING, Layout
from blockwright.attention.partial import Partial, merge
from blockwright.errors import AttentionError

QUERIES, RESULTS, KEYS = range(3)
"""Tags of messages."""


def zigzag(tokens: int, ranks: int) -> list[Tensor]:
    """Positions int64 [n] of the slots of every rank; ``PADDING`` where there is no token."""
    chunk = -(-tokens // (2 * ranks))
    every = torch.arange(2 * ranks * chunk).view(2 * ranks, chunk)
    every = every.masked_fill(every >= tokens, PADDING)
    return [torch.cat([every[r], every[2 * ranks - 1 - r]]) for r in range(ranks)]


def shard(x: Tensor, positions: Tensor) -> Tensor:
    """Rows [..., n, D] of a whole tensor [..., N, D]; zeros where a slot is empty."""
    rows = x.index_select(-2, positions.clamp(min=0))
    return rows.masked_fill((positions == PADDING)[:, None], 0)


@dataclass
class Link:
    """This process among those of a group, and what it has sent."""

    rank: int
    size: int
    group: dist.ProcessGroup | None = None
    sent_bytes: dict[str, int] = field(default_factory=lambda: {"forward": 0, "back": 0})

    @classmethod
    def of(cls, group: dist.ProcessGroup | None = None) -> Link:
        return cls(dist.get_rank(group), dist.get_world_size(group), group)

    def start(
        self, sent: Tensor, to: int, received: Tensor, source: int, tag: int
    ) -> Callable[[], None]:
        """Begin to send and to receive; what it returns waits for both."""
        self.sent_bytes["back" if tag == RESULTS else "forward"] += sent.nbytes
        works = [
            dist.isend(sent.contiguous(), self._peer(to), group=self.group, tag=tag),
            dist.irecv(received, self._peer(source), group=self.group, tag=tag),
        ]

        def wait() -> None:
            for work in works:
                if work is not None:
                    work.wait()

        return wait

    def _peer(self, rank: int) -> int:
        rank %= self.size
        return rank if self.group is None else dist.get_global_rank(self.group, rank)


def ring_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    tokens: int,
    link: Link,
    causal: bool = True,
    scale: float | None = None,
    schedule: str = "auto",
) -> Tensor:
    """This rank's rows [B, H, n, V] of attention over all ``tokens``, of its zigzag shards.

    ``schedule``: ``queries`` (TokenRing), ``keys`` (Ring Attention), or the one whose busier
    direction carries less.
    """
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        raise AttentionError("ring attention has no backward pass; call it under torch.no_grad()")
    positions = zigzag(tokens, link.size)
    if q.shape[2] != len(positions[0]) or k.shape[2] != len(positions[0]):
        raise AttentionError(
            f"{tokens} tokens over {link.size} processes make {len(positions[0])} slots each,"
            f" got {q.shape[2]} queries and {k.shape[2]} keys"
        )
    busiest = bytes_per_step(q, k, v)
    chosen = min(busiest, key=lambda name: busiest[name]) if schedule == "auto" else schedule
    if chosen not in SCHEDULES:
        raise AttentionError(f"unknown schedule {schedule!r}; there are auto, {', '.join(busiest)}")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    step = Step(positions=positions, scale=scale, causal=causal)
    return SCHEDULES[chosen](q.float(), k.float(), v.float(), link, step).output.to(q.dtype)


def bytes_per_step(q: Tensor, k: Tensor, v: Tensor) -> dict[str, int]:
    """What the busier direction of a link carries per step, by schedule; all in fp32."""
    (batch, heads, slots, width), shared = q.shape, k.shape[1]
    forward, back = heads * width, heads * (v.shape[-1] + 1)
    keys = shared * (width + v.shape[-1])
    return {"queries": 4 * batch * slots * max(forward, back), "keys": 4 * batch * slots * keys}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One rank's queries meet another's keys."""

    positions: Sequence[Tensor]
    scale: float
    causal: bool

    def rows(self, queries: int, keys: int) -> slice:
        """The query slots of a rank that see anything of another's keys."""
        late = self.causal and queries < keys
        return slice(len(self.positions[0]) // 2, None) if late else slice(None)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, queries: int, keys: int) -> Partial:
        """Over these ``rows``; a later rank's queries see the first half of the keys alone."""
        rows = self.rows(queries, keys)
        early = self.causal and queries > keys
        seen = slice(len(self.positions[0]) // 2) if early else slice(None)
        layout = Layout(
            q_position=self.positions[queries][None, None, rows],
            k_position=self.positions[keys][None, None, seen],
            causal=self.causal,
        )
        return attend_dense(q[:, :, rows], k[:, :, seen], v[:, :, seen], layout, self.scale)


def attend_by_queries(q: Tensor, k: Tensor, v: Tensor, link: Link, step: Step) -> Partial:
    """TokenRing: queries go round, results go home, both while the next ones are computed."""
    rank, size, held = link.rank, link.size, q
    mine = found = step.attend(q, k, v, rank, rank)
    for t in range(1, size):
        arriving = torch.empty_like(q)
        link.start(held, rank + 1, arriving, rank - 1, QUERIES)()
        held = arriving
        home = _send_home(link, step, found, t - 1) if t > 1 else None
        found = step.attend(held, k, v, (rank - t) % size, rank)
        mine = merge([mine, home()]) if home is not None else mine
    return merge([mine, _send_home(link, step, found, size - 1)()]) if size > 1 else mine


def attend_by_keys(q: Tensor, k: Tensor, v: Tensor, link: Link, step: Step) -> Partial:
    """Ring Attention: keys and values go round."""
    rank, size, held = link.rank, link.size, torch.cat([k, v], dim=-1)
    mine, slots = step.attend(q, k, v, rank, rank), q.shape[2]
    for t in range(1, size):
        arriving = torch.empty_like(held)
        link.start(held, rank + 1, arriving, rank - 1, KEYS)()
        held, keys = arriving, (rank - t) % size
        k_held, v_held = held.split([k.shape[-1], v.shape[-1]], dim=-1)
        part = step.attend(q, k_held, v_held, rank, keys)
        mine = merge([mine, _padded(part, slots, step.rows(rank, keys))])
    return mine


SCHEDULES: dict[str, Callable[[Tensor, Tensor, Tensor, Link, Step], Partial]] = {
    "queries": attend_by_queries,
    "keys": attend_by_keys,
}


def _send_home(link: Link, step: Step, found: Partial, t: int) -> Callable[[], Partial]:
    """What step t found for rank r - t goes there; this rank's own comes from r + t, when asked."""
    sent = torch.cat([found.output, found.lse[..., None]], dim=-1)
    source, slots = (link.rank + t) % link.size, len(step.positions[0])
    rows = step.rows(link.rank, source)
    received = sent.new_empty(*sent.shape[:2], len(range(slots)[rows]), sent.shape[-1])
    wait = link.start(sent, link.rank - t, received, source, RESULTS)

    def arrived() -> Partial:
        wait()
        return _padded(Partial(output=received[..., :-1], lse=received[..., -1]), slots, rows)

    return arrived


def _padded(part: Partial, slots: int, rows: slice) -> Partial:
    """A part of the rows among all of them; the others saw nothing."""
    batch, heads, _, width = part.output.shape
    output = part.output.new_zeros(batch, heads, slots, width)
    lse = part.lse.new_full((batch, heads, slots), -torch.inf)
    output[:, :, rows], lse[:, :, rows] = part.output, part.lse
    return Partial(output=output, lse=lse)
