"""Optimizers by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from blockwright.tuning.optimizers.first_order import Adam, HealOptimizer, Sgd
from blockwright.tuning.trained import Trained

OPTIMIZERS: dict[str, Callable[[Mapping[str, Trained]], HealOptimizer]] = {
    "adam": Adam,
    "adam8bit": partial(Adam, eight_bit=True),
    "sgd": Sgd,
    "sgd8bit": partial(Sgd, eight_bit=True),
}


def optimizer_named(name: str, trained: Mapping[str, Trained]) -> HealOptimizer:
    """An optimizer over what is trained; ``KeyError`` for an unknown name."""
    return OPTIMIZERS[name](trained)
