"""Parts: a block's attention, or its FFN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from blockwright.types.group import joined_names
from blockwright.types.site import Site, SiteKind
from blockwright.types.width import Channels


class PartRole(StrEnum):
    """What a part does to its tokens."""

    ATTENTION = "attention"
    """Mixes them."""
    FFN = "ffn"
    """Takes each by itself."""


@dataclass(frozen=True, kw_only=True)
class AbsentModule:
    """A module of a dropped part, and what answers in its place."""

    path: str
    """In the model, ``model.layers.3.self_attn``."""
    silent: bool = True
    """Answers zeros; False: hands its hidden states on, to another module of the part."""
    outputs: int = 0
    """Length of the tuple it answers with; 0: a tensor."""


@dataclass(frozen=True, kw_only=True)
class HeadDims:
    """Linears of an attention by what they do, and the dimensions of its heads."""

    query: str
    """A site, or its name inside the block; its rows, and those of key and value, are heads of
    ``size`` dimensions, side by side."""
    key: str
    value: str
    output: str
    """Its columns are the query heads'."""
    size: int
    units: tuple[tuple[int, ...], ...]
    """Dimensions of queries and keys that a rotation by position mixes."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Linears of a block that write to the residual stream together.

    Dropped, they all give zeros, their biases included; the modules around them are not run.
    """

    site: Site
    """Of kind ``PART``."""
    role: PartRole
    members: tuple[Site, ...]
    """Its linear sites."""
    parameters: tuple[str, ...] = ()
    """All parameters and persistent buffers that go with it, those of the members first."""
    absent: tuple[AbsentModule, ...] = ()
    """What stands for its modules when it is dropped."""
    writes_all: bool = True
    """Whether a block without all its parts hands on what it got (not where it ends with a norm).
    """
    refused: str = ""
    """Why it cannot be dropped; empty when it can."""
    channels: Channels | None = None
    """Of a part whose width can be less."""
    not_narrower: str = ""
    """Why it cannot."""
    heads: HeadDims | None = None
    """Of an attention whose heads can have fewer dimensions."""
    no_dims: str = ""
    """Why they cannot."""


@dataclass(frozen=True, kw_only=True)
class NarrowedPart:
    """An FFN of which some channels stay, or an attention of which some heads do."""

    part: Part
    spec: Mapping[str, Any]
    """Of its format."""
    kept: tuple[int, ...] = ()
    """Channels, rising."""
    dims: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Linear -> the dimensions of each of its heads that stay, rising; empty where whole channels
    go."""


def absent_to_json(modules: tuple[AbsentModule, ...]) -> dict[str, Any]:
    """As a folder's config has them: path -> the rest."""
    return {m.path: {k: v for k, v in asdict(m).items() if k != "path"} for m in modules}


def absent_from_json(data: Mapping[str, Mapping[str, Any]]) -> tuple[AbsentModule, ...]:
    """Inverse of ``absent_to_json``."""
    return tuple(AbsentModule(path=path, **rest) for path, rest in data.items())


def part_site(block: int, block_path: str, names: Sequence[str], weights: int) -> Site:
    """The site of the part that the modules ``names`` (relative to their block) are:
    ``model.layers.3.self_attn``, or ``model.layers.3.{fc1,fc2}``.
    """
    name = names[0] if len(names) == 1 else joined_names(names)
    return Site(id=f"{block_path}.{name}", kind=SiteKind.PART, block=block, weights=weights)
