"""Adapters that add a product of two thin matrices: a path beside the host, merged where the host's
format can hold the sum.

    y = host(x) + extra(x),     extra(x) = x right^T left^T

Merging:  dense hosts take the sum into their weight; grids become a sum format
          (``int4-g64&rank-r8``); factors, and the factors of sums, become longer ones.  Side paths
          are stored in bfloat16.
Shapes:   O out features, I in features, R rank.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from blockwright.errors import FormatError
from blockwright.formats._linear import FormatLinear
from blockwright.formats.bf import BfFormat
from blockwright.heal.adapter import (
    Adapter,
    Attachment,
    Host,
    HostKind,
    Replacement,
    Setting,
)
from blockwright.registry import format_named
from blockwright.tuning import FreeTensor
from blockwright.types import (
    DenseSolution,
    FactoredFormat,
    FactoredSolution,
    GridFormat,
    PackedFormat,
    SumFormat,
)

WITH_SIDE_PATH = frozenset({HostKind.DENSE, HostKind.QUANTIZED, HostKind.FACTORED, HostKind.SUM})


class Extra(nn.Module):
    """What is added: linear in x, of a rank that is known."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """x [..., I] -> [..., O]"""

    @abstractmethod
    def factors(self) -> tuple[Tensor, Tensor]:
        """left [O, R] and right [R, I], whose product is the change of the weight."""


class BesideLinear(nn.Module):
    """A host with a path beside it."""

    def __init__(self, host: nn.Module, extra: Extra) -> None:
        super().__init__()
        self.host, self.extra = host, extra

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.host(x)
        added: Tensor = self.extra(x)
        return y + added


class SideAttachment(Attachment):
    """A path beside one host."""

    def __init__(self, host: Host, extra: Extra, paces: dict[str, float]) -> None:
        """``paces``: of the parameters of ``extra`` that are trained."""
        super().__init__(host)
        self.extra = extra.to(host.weight().device)
        self.beside = BesideLinear(host.module, extra)
        parameters = dict(extra.named_parameters())
        self.trained |= {n: FreeTensor(parameters[n], pace=pace) for n, pace in paces.items()}

    def module(self) -> nn.Module:
        return self.beside

    @torch.no_grad()
    def factors(self) -> tuple[Tensor, Tensor]:
        left, right = self.extra.factors()
        return left.detach().float(), right.detach().float()

    @torch.no_grad()
    def effective(self) -> Tensor:
        left, right = self.factors()
        return self.host.weight() + left @ right

    def merged(self) -> nn.Module:
        if self.host.packed is None:
            return dense_module(self.host, self.effective())
        return with_side_path(self.host, *self.factors())

    def replacement(self, dtype: torch.dtype) -> Replacement:
        if self.host.packed is None:
            return dense_replacement(self.host, self.effective(), dtype)
        return packed_replacement(with_side_path(self.host, *self.factors()))


@dataclass(frozen=True, kw_only=True)
class SideAdapter(Adapter):
    """One that adds an ``Extra`` to every host."""

    hosts: ClassVar[frozenset[HostKind]] = WITH_SIDE_PATH

    @abstractmethod
    def attach_one(self, host: Host, draw: torch.Generator) -> SideAttachment:
        """The path beside one host."""

    @abstractmethod
    def rank_at(self, host: Host) -> int:
        """Rank of what is added."""

    def refusal(self, host: Host) -> str:
        return super().refusal(host) or side_refusal(host, self.rank_at(host))

    def attach(self, model: nn.Module, hosts: Sequence[Host], setting: Setting) -> list[Attachment]:
        draw = torch.Generator().manual_seed(setting.seed)
        found: list[Attachment] = []
        for host in hosts:
            found.append(self.attach_one(host, draw))
            model.set_submodule(host.path, found[-1].module())
        return found


def side_refusal(host: Host, rank: int) -> str:
    """Why no path of this rank can stand beside a host; empty where one can."""
    if not host.replaceable:
        return "experts and tables have no path beside them"
    if rank > min(host.shape):
        return f"rank {rank} is above the {min(host.shape)} that a weight of {host.shape} can have"
    if host.packed is None:
        return ""
    try:
        side_format(host.packed.format, host.shape, rank)
    except FormatError as error:
        return str(error)
    return ""


def side_format(format: PackedFormat, shape: tuple[int, int], rank: int) -> PackedFormat:
    """The format that holds a weight of ``format`` and a path of this rank; ``FormatError`` where
    there is none.
    """
    plus = format.plus if isinstance(format, SumFormat) else None
    if isinstance(format, GridFormat):
        made = format_named(f"{format.name}&rank-r{rank}")
    elif isinstance(plus, FactoredFormat) and isinstance(plus.values, BfFormat):
        longer = plus.rank(shape) + rank
        made = format_named(f"{format.base.name}&rank-r{longer}")  # type: ignore[attr-defined]
    elif isinstance(format, FactoredFormat) and isinstance(format.values, BfFormat):
        made = format_named(f"rank-r{format.rank(shape) + rank}")
    else:
        raise FormatError(f"{format.name} holds no path beside it; merge nothing, train stored")
    if not isinstance(made, PackedFormat):
        raise FormatError(f"{made.name} is not packed")
    made.check_shape(shape, "side path")
    return made


@torch.no_grad()
def with_side_path(host: Host, left: Tensor, right: Tensor) -> FormatLinear:
    """The packed module of a host's weight and a path beside it, in bfloat16."""
    packed = host.packed
    if packed is None:
        raise TypeError(f"{host.name} is not packed")
    shape = (packed.out_features, packed.in_features)
    format = side_format(packed.format, shape, left.shape[1])
    stored = packed.stored_weight()
    if isinstance(packed.format, GridFormat):
        tensors = {f"base.{name}": tensor for name, tensor in stored.items()}
        tensors |= {f"plus.{name}": t for name, t in _rank_tensors(left, right, packed).items()}
        tensors["weight"] = torch.empty(0, dtype=torch.uint8)
    else:
        before = "plus." if isinstance(packed.format, SumFormat) else ""
        O, I = shape  # noqa: E741
        longer_left = torch.cat([stored[f"{before}left.weight"].view(O, -1).float(), left], 1)
        longer_right = torch.cat([stored[f"{before}right.weight"].view(-1, I).float(), right])
        longer = _rank_tensors(longer_left, longer_right, packed)
        tensors = dict(stored) | {f"{before}{name}": tensor for name, tensor in longer.items()}
    if packed.bias is not None:
        tensors["bias"] = packed.bias.detach()
    made = format.empty(shape, bias=packed.bias is not None, dtype=packed.dtype, device="cpu")
    made.load_stored(tensors)
    if not isinstance(made, FormatLinear):
        raise TypeError(f"{format.name} made a {type(made).__name__}")
    return made


def _rank_tensors(left: Tensor, right: Tensor, like: FormatLinear) -> dict[str, Tensor]:
    """Two factors as ``rank`` stores them."""
    parts = (left.to(torch.bfloat16), right.to(torch.bfloat16))
    solutions = [DenseSolution(values_OI=part) for part in parts]
    format = format_named(f"rank-r{left.shape[1]}")
    if not isinstance(format, PackedFormat):
        raise TypeError(f"{format.name} is not packed")
    solution = FactoredSolution(left=solutions[0], right=solutions[1])
    packed = format.pack(solution, None, like.dtype)
    return dict(packed.stored_tensors())


@torch.no_grad()
def dense_module(host: Host, W_OI: Tensor) -> nn.Module:
    """A dense host's module with another weight; everything else is shared."""
    made = copy(host.module)
    made.__dict__.pop("weight", None)
    made._parameters = dict(host.module._parameters)
    weight = W_OI.T if host.site.transposed else W_OI
    made._parameters["weight"] = nn.Parameter(weight.contiguous(), requires_grad=False)
    return made


def dense_replacement(host: Host, W_OI: Tensor, dtype: torch.dtype) -> Replacement:
    """A dense host's weight as a folder stores it."""
    weight = W_OI.T if host.site.transposed else W_OI
    return Replacement(tensors={"weight": weight.to(dtype).contiguous()})


def packed_replacement(module: FormatLinear) -> Replacement:
    """A packed module in place of whatever stood there; its bias stays."""
    return Replacement(tensors=module.stored_weight(), spec=module.format.spec())


def with_site(host: Host, module: nn.Module) -> Host:
    """The same host with another module."""
    return replace(host, module=module)
