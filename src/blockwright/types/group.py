"""Groups: linears of a block that read one tensor and need one decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from blockwright.types.site import Site, SiteKind


@dataclass(frozen=True, kw_only=True)
class Group:
    """Linears that share an input x, and the parameters that make it.

    Dividing what the parameters give by t and multiplying the members' weights by t changes no
    output: see ``numerics.folds``.
    """

    site: Site
    """Of kind ``GROUP``."""
    members: tuple[Site, ...]
    """In order of execution."""
    parameters: tuple[str, ...] = ()
    """Names of model parameters [I] that take in 1 / t; the first one is exact."""
    offsets: tuple[float, ...] = ()
    """Each acts as offset + parameter."""
    refused: str = ""
    """Why nothing can take in a scale; empty when something can."""


def group_site(block: int, block_path: str, names: Sequence[str], weights: int) -> Site:
    """The site of the linears ``names`` (relative to their block): ``self_attn.{q_proj,k_proj}``.

    ``block_path``: of this block, ``model.layers.3``.
    """
    path = f"{block_path}.{joined_names(names)}"
    return Site(id=path, kind=SiteKind.GROUP, block=block, weights=weights)


def joined_names(names: Sequence[str]) -> str:
    """One name for several paths: ``self_attn.{q_proj,k_proj}``."""
    parts = [name.split(".") for name in names]
    shared = 0
    while all(len(p) > shared + 1 and p[shared] == parts[0][shared] for p in parts):
        shared += 1
    ends = ",".join(".".join(p[shared:]) for p in parts)
    return ".".join([*parts[0][:shared], f"{{{ends}}}"])
