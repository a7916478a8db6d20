"""Optimizers by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from blockwright.errors import AdapterError
from blockwright.tuning.optimizers.descent import BlockDescent
from blockwright.tuning.optimizers.first_order import Adam, HealOptimizer, Sgd
from blockwright.tuning.optimizers.fisher import Mfac
from blockwright.tuning.optimizers.through_bitsandbytes import NAME as BNB
from blockwright.tuning.optimizers.through_bitsandbytes import (
    BitsAndBytesAdam,
    bitsandbytes_library,
)
from blockwright.tuning.trained import Trained

Items = Mapping[str, Trained]
Blocks = Mapping[str, str]
OPTIMIZERS: dict[str, Callable[[Items, Blocks], HealOptimizer]] = {
    "adam": lambda items, blocks: Adam(items),
    "adam8bit": lambda items, blocks: Adam(items, eight_bit=True),
    BNB: lambda items, blocks: BitsAndBytesAdam(items),
    "sgd": lambda items, blocks: Sgd(items),
    "sgd8bit": lambda items, blocks: Sgd(items, eight_bit=True),
    "mfac": lambda items, blocks: Mfac(items),
    "bcd": BlockDescent,
}


def check_optimizer(name: str, device: str) -> None:
    """Raise ``AdapterError`` for an unknown optimizer, or one that cannot step on ``device``."""
    if name not in OPTIMIZERS:
        raise AdapterError(f"unknown optimizer {name!r}; there are {', '.join(OPTIMIZERS)}")
    if name == BNB:
        bitsandbytes_library(device)


def optimizer_named(name: str, trained: Items, blocks: Blocks | None = None) -> HealOptimizer:
    """An optimizer over what is trained; ``KeyError`` for an unknown name.

    ``blocks``: name of what is trained -> its block; one block of all by default.
    """
    return OPTIMIZERS[name](trained, dict.fromkeys(trained, "") if blocks is None else blocks)
