"""Works: the products that a machine profile times, one name for all sites that multiply alike."""

from __future__ import annotations

from dataclasses import dataclass

from blockwright.types import Site, SiteKind, TableRole

LOOKUP = "embedding"
"""The operation of a table whose rows are looked up."""


@dataclass(frozen=True, order=True)
class Work:
    """A product, or a lookup, with a weight [out, in]; without the format."""

    operation: str
    """``linear``, ``conv1d`` (stored transposed), ``expert``, ``head``, ``embedding``."""
    out_features: int
    in_features: int
    bias: bool = False

    def __str__(self) -> str:
        bias = "+bias" if self.bias else ""
        return f"{self.operation} {self.out_features}x{self.in_features}{bias}"

    def named(self, format_name: str) -> str:
        """The work in a format, as profiles and options name it."""
        return f"{self} {format_name}"


def bare_works(site: Site) -> tuple[Work, ...]:
    """What a site does in one forward; nothing for a site without a weight of its own."""
    bias = site.bias is not None
    if site.kind is SiteKind.LINEAR:
        operation = "conv1d" if site.transposed else "linear"
        if site.expert is not None:
            operation, bias = "expert-transposed" if site.transposed else "expert", False
        return (Work(operation, *site.shape, bias),)
    if site.kind is SiteKind.TABLE:
        lookup, product = Work(LOOKUP, *site.shape), Work("head", *site.shape, bias)
        return {
            TableRole.EMBEDDING: (lookup,),
            TableRole.HEAD: (product,),
            TableRole.TIED: (lookup, product),
        }[site.role or TableRole.HEAD]
    return ()


def works_of(site: Site, format_name: str) -> tuple[str, ...]:
    """Names of a site's works in a format."""
    return tuple(work.named(format_name) for work in bare_works(site))
