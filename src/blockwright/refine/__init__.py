"""Re-solves sites, and tunes blocks, on the inputs that the compressed prefix really produces."""

from blockwright.refine.healing import (
    LEAST_BATCHES,
    HealedBlocks,
    StoredBatches,
    heal_blocks,
    healing_inputs,
)
from blockwright.refine.sequential import NewObserver, RefinedSite, Resolve, refine_blocks
from blockwright.refine.tunable import TunableBlock

__all__ = [
    "LEAST_BATCHES",
    "HealedBlocks",
    "NewObserver",
    "RefinedSite",
    "Resolve",
    "StoredBatches",
    "TunableBlock",
    "heal_blocks",
    "healing_inputs",
    "refine_blocks",
]
