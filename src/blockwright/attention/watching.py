"""Looking on while a model attends: which tiles its blocks visit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from blockwright.attention.calling import Attended
from blockwright.attention.metrics import density
from blockwright.attention.policy import Context


class Watcher(Protocol):
    """Is shown every call of a model's attention."""

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, done: Attended, context: Context
    ) -> None: ...


_WATCHERS: ContextVar[tuple[Watcher, ...]] = ContextVar("watchers", default=())


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Show the calls inside to a watcher."""
    before = _WATCHERS.set((*_WATCHERS.get(), watcher))
    try:
        yield
    finally:
        _WATCHERS.reset(before)


def show(q: Tensor, k: Tensor, v: Tensor, done: Attended, context: Context) -> None:
    """Tell those who look on of one call."""
    for watcher in _WATCHERS.get():
        watcher(q, k, v, done, context)


@dataclass
class Densities:
    """Share of the visible tiles that was visited, by block; calls of one query are left out."""

    found: dict[int | None, list[float]] = field(default_factory=dict)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, done: Attended, context: Context) -> None:
        if q.shape[2] > 1:
            share = density(done.choice, context)
            self.found.setdefault(context.layer, []).append(share)

    @property
    def mean(self) -> float | None:
        """Over all calls; None where there was none."""
        shares = [share for shares in self.found.values() for share in shares]
        return sum(shares) / len(shares) if shares else None
