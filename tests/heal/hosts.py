"""Models of one linear, dense or packed, for adapters to stand at."""

from __future__ import annotations

from copy import deepcopy
from functools import cache

import torch
from torch import Tensor, nn

from blockwright.formats import FormatLinear
from blockwright.heal import Host, HostKind
from blockwright.registry import format_named, method_named
from blockwright.types import PackedFormat, Site, SiteKind, Statistics

OUT, IN = 48, 64
PATH = "block.linear"
FORMATS = {
    HostKind.QUANTIZED: "int3-g32",
    HostKind.FACTORED: "rank-r16",
    HostKind.PRUNED: "sparse2of4",
    HostKind.SUM: "nf3-g32&rank-r8",
}


def inputs(rows: int = 20) -> Tensor:
    return torch.randn(rows, IN, generator=torch.Generator().manual_seed(5))


def packed_linear(name: str, W_OI: Tensor, bias: Tensor | None = None) -> FormatLinear:
    """A weight in a format, by the format's default method on white inputs."""
    format = format_named(name)
    assert isinstance(format, PackedFormat)
    method = method_named(format.default_method or "")
    gram = torch.eye(W_OI.shape[1])
    solution = method.solve(W_OI, Statistics(tokens=100, input_gram=gram), format)
    module = format.pack(solution, bias, torch.float32)
    assert isinstance(module, FormatLinear)
    return module


@cache
def module_of(kind: HostKind, seed: int) -> nn.Module:
    """A linear of a kind, packed once for all tests."""
    torch.manual_seed(seed)
    dense = nn.Linear(IN, OUT)
    if kind is HostKind.DENSE:
        return dense
    return packed_linear(FORMATS[kind], dense.weight.detach(), dense.bias.detach())


def model_with(kind: HostKind, seed: int = 0) -> tuple[nn.Module, Host]:
    """A model with one frozen host of a kind at ``PATH``."""
    module = deepcopy(module_of(kind, seed))
    model = nn.Module()
    model.add_module("block", nn.Module())
    model.get_submodule("block").add_module("linear", module)
    model.requires_grad_(False)
    site = Site(id=PATH, kind=SiteKind.LINEAR, block=0, shape=(OUT, IN), parameter=f"{PATH}.weight")
    return model, Host(site, PATH, module)
