"""What an adapter is: it says what is trained at a host, and what is stored in the end.

Paper:   "Parameter-Efficient Fine-Tuning for Large Models: A Comprehensive Survey", 2024, for the
         families.

Shapes:  O out features, I in features of a host's linear.
Laws:    nothing changes before the first step, unless the adapter re-encodes its host (which must
         not be worse then); merged and unmerged outputs agree; unmerging brings the old weight
         back; what is trained can be saved and loaded; nothing else asks for a gradient.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from blockwright.formats._linear import FormatLinear
from blockwright.tuning import Trained
from blockwright.types import (
    FactoredFormat,
    MaskedFormat,
    Site,
    SiteKind,
    SumFormat,
    ThresholdFormat,
)


class Family(StrEnum):
    """The survey's taxonomy."""

    ADDITIVE = "additive"
    SELECTIVE = "selective"
    REPARAMETERIZED = "reparameterized"
    HYBRID = "hybrid"


class HostKind(StrEnum):
    """How a host's weight is stored."""

    DENSE = "dense"
    QUANTIZED = "quantized"
    FACTORED = "factored"
    PRUNED = "pruned"
    SUM = "sum"
    TABLE = "table"
    """A packed embedding or head."""


@dataclass(frozen=True)
class Host:
    """One linear (or packed table) of the model that is healed."""

    site: Site
    path: str
    """Of its module in the model; ``path.name`` is where a folder stores a tensor."""
    module: nn.Module
    """A packed module, or a dense linear in fp32."""

    @property
    def packed(self) -> FormatLinear | None:
        return self.module if isinstance(self.module, FormatLinear) else None

    @property
    def kind(self) -> HostKind:
        if self.packed is None:
            return HostKind.DENSE
        if self.site.kind is SiteKind.TABLE:
            return HostKind.TABLE
        format = self.packed.format
        if isinstance(format, SumFormat):
            return HostKind.SUM
        if isinstance(format, FactoredFormat | ThresholdFormat):
            return HostKind.FACTORED
        return HostKind.PRUNED if isinstance(format, MaskedFormat) else HostKind.QUANTIZED

    @property
    def name(self) -> str:
        """What it is, for messages."""
        packed = self.packed
        return f"{self.site.id} ({'dense' if packed is None else packed.format.name})"

    @property
    def replaceable(self) -> bool:
        """Whether a module of its own can take its place: experts and tables are operands."""
        return self.site.expert is None and self.site.kind is SiteKind.LINEAR

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)"""
        O, I = self.weight().shape  # noqa: E741
        return O, I

    @torch.no_grad()
    def weight(self) -> Tensor:
        """W [O, I], fp32."""
        if self.packed is not None:
            return self.packed.dequantize()
        weight = self.module.get_parameter("weight").detach().float()
        return weight.T if self.site.transposed else weight


@dataclass(frozen=True, kw_only=True)
class Replacement:
    """What a folder stores at a host from now on."""

    tensors: Mapping[str, Tensor]
    """By the tensor's name below the host's path; they take the place of all it had."""
    spec: Mapping[str, Any] | None = None
    """Of the new format; None: the host stays what it was, and other tensors stay."""


class Attachment(ABC):
    """An adapter at one host."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.trained: dict[str, Trained] = {}
        """By a name that is unique at the host."""
        self.placed: dict[str, tuple[nn.Module, str]] = {}
        """Module and attribute that a trained value is put into, for those that are no parameters
        of a module themselves."""

    def module(self) -> nn.Module:
        """What stands at the host's path while it is trained."""
        return self.host.module

    @abstractmethod
    def effective(self) -> Tensor:
        """The weight that the host multiplies with now, [O, I], fp32."""

    @abstractmethod
    def merged(self) -> nn.Module:
        """What stands there afterwards: the host's own kind, or a format that holds both."""

    @abstractmethod
    def replacement(self, dtype: torch.dtype) -> Replacement:
        """The same as a folder stores it; ``dtype``: of a dense host's weight there."""


def _no_angles() -> Sequence[float]:
    raise ValueError("no text was given to see how blocks turn their hidden states")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What attaching may depend on beside the weights."""

    seed: int = 0
    angles: Callable[[], Sequence[float]] = _no_angles
    """Mean angle, over pi, by which every block turns its hidden states."""


@dataclass(frozen=True, kw_only=True)
class Adapter(ABC):
    """One method.  Implementations are frozen dataclasses of their hyperparameters, one a file."""

    paper: ClassVar[str]
    family: ClassVar[Family]
    reencodes: ClassVar[bool] = False
    """Whether attaching changes the host (to something not worse)."""
    hosts: ClassVar[frozenset[HostKind]]
    """Kinds of host that it supports."""
    peft_type: ClassVar[str] = ""
    """The name that peft has for it; empty where it has none."""

    def refusal(self, host: Host) -> str:
        """Why it cannot stand at a host; empty where it can."""
        if host.kind not in self.hosts:
            return f"it supports {', '.join(sorted(self.hosts))} hosts"
        return ""

    @abstractmethod
    def attach(self, model: nn.Module, hosts: Sequence[Host], setting: Setting) -> list[Attachment]:
        """One attachment for every host; raises ``AdapterError`` for what it cannot do."""


@dataclass(frozen=True)
class Counts:
    """Numbers of elements, before and after adapters were attached."""

    trainable: int
    frozen: int
    frozen_extra: int = field(default=0)
