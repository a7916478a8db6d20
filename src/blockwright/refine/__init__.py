"""Re-solves chosen sites in order on the inputs that the compressed prefix really produces."""

from blockwright.refine.sequential import RefinedSite, Resolve, refine_blocks

__all__ = ["RefinedSite", "Resolve", "refine_blocks"]
