"""Optimizers by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from blockwright.tuning.optimizers.descent import BlockDescent
from blockwright.tuning.optimizers.first_order import Adam, HealOptimizer, Sgd
from blockwright.tuning.optimizers.fisher import Mfac
from blockwright.tuning.trained import Trained

Items = Mapping[str, Trained]
Blocks = Mapping[str, str]
OPTIMIZERS: dict[str, Callable[[Items, Blocks], HealOptimizer]] = {
    "adam": lambda items, blocks: Adam(items),
    "adam8bit": lambda items, blocks: Adam(items, eight_bit=True),
    "sgd": lambda items, blocks: Sgd(items),
    "sgd8bit": lambda items, blocks: Sgd(items, eight_bit=True),
    "mfac": lambda items, blocks: Mfac(items),
    "bcd": BlockDescent,
}


def optimizer_named(name: str, trained: Items, blocks: Blocks | None = None) -> HealOptimizer:
    """An optimizer over what is trained; ``KeyError`` for an unknown name.

    ``blocks``: name of what is trained -> its block; one block of all by default.
    """
    return OPTIMIZERS[name](trained, dict.fromkeys(trained, "") if blocks is None else blocks)
