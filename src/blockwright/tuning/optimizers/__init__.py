"""Optimizers for healing: Adam and SGD whose moments are kept in fp32 or in 8 bits.

``optimizer_named`` makes one; all of them share the interface ``HealOptimizer``.
"""

from blockwright.tuning.optimizers.first_order import Adam, HealOptimizer, Sgd
from blockwright.tuning.optimizers.moments import DynamicMoment, Moment, PlainMoment
from blockwright.tuning.optimizers.named import (
    OPTIMIZERS,
    check_optimizer,
    optimizer_named,
)

__all__ = [
    "OPTIMIZERS",
    "Adam",
    "DynamicMoment",
    "HealOptimizer",
    "Moment",
    "PlainMoment",
    "Sgd",
    "check_optimizer",
    "optimizer_named",
]
