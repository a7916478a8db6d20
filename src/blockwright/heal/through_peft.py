"""Adapters that peft has: its layers are put around the hosts, and what it saves is what it loads.

Packed hosts are handed to it as frozen linears.  Those adapters whose change of the weight is a
product of two thin matrices say so (``peft_factors``), and stand beside packed hosts as well;
others need a dense one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from blockwright.errors import AdapterError
from blockwright.formats._linear import FormatLinear
from blockwright.heal.adapter import Adapter, Attachment, Host, HostKind, Replacement, Setting
from blockwright.heal.sides import (
    WITH_SIDE_PATH,
    dense_module,
    dense_replacement,
    packed_replacement,
    side_refusal,
    with_side_path,
)
from blockwright.tuning import FreeTensor

NAME = "default"
"""peft's own name for a model's only adapter."""


class PackedBase(nn.Linear):
    """A packed host as the frozen linear that peft takes it for."""

    def __init__(self, packed: FormatLinear) -> None:
        nn.Module.__init__(self)
        self.packed = packed
        self.in_features, self.out_features = packed.in_features, packed.out_features
        packed.tuned = True

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """W [O, I], fp32."""
        return self.packed.dequantize()

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        return self.packed.bias

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.packed(x)
        return y

    def extra_repr(self) -> str:
        return self.packed.extra_repr()


class PeftAttachment(Attachment):
    """One of peft's layers."""

    def __init__(self, host: Host, layer: Any, adapter: PeftAdapter) -> None:
        super().__init__(host)
        self.layer, self.adapter = layer, adapter
        for name, parameter in layer.named_parameters():
            if parameter.requires_grad:
                self.trained[name] = FreeTensor(parameter, pace=adapter.pace(name, host))

    def module(self) -> nn.Module:
        layer: nn.Module = self.layer
        return layer

    @torch.no_grad()
    def effective(self) -> Tensor:
        if self.host.packed is not None:
            left, right = self.adapter.peft_factors(self.layer)
            return self.host.weight() + left.float() @ right.float()
        base = self.host.module.get_parameter("weight")
        before = base.detach().clone()
        self.layer.merge(safe_merge=True)
        merged = self.layer.get_base_layer().weight.detach().float().clone()
        self.layer.unmerge()
        base.data = before
        found: Tensor = merged.T if self.host.site.transposed else merged
        return found

    @torch.no_grad()
    def merged(self) -> nn.Module:
        if self.host.packed is None:
            return dense_module(self.host, self.effective())
        left, right = self.adapter.peft_factors(self.layer)
        return with_side_path(self.host, left.float(), right.float())

    def replacement(self, dtype: torch.dtype) -> Replacement:
        if self.host.packed is None:
            return dense_replacement(self.host, self.effective(), dtype)
        module = self.merged()
        if not isinstance(module, FormatLinear):
            raise TypeError(f"{self.host.name} is not packed")
        return packed_replacement(module)


@dataclass(frozen=True, kw_only=True)
class PeftAdapter(Adapter):
    """One that peft makes."""

    hosts: ClassVar[frozenset[HostKind]] = WITH_SIDE_PATH

    rank: int = 8

    @abstractmethod
    def config(self, hosts: Sequence[Host], setting: Setting) -> Any:
        """peft's configuration for these hosts."""

    def peft_factors(self, layer: Any) -> tuple[Tensor, Tensor]:
        """left [O, R] and right [R, I] of the weight's change."""
        raise NotImplementedError(f"{type(self).__name__} is no product of two matrices")

    def pace(self, name: str, host: Host) -> float:
        """Of a parameter of the layer."""
        return 1.0

    def rank_at(self, host: Host) -> int:
        """The largest that it may have there."""
        return self.rank

    def refusal(self, host: Host) -> str:
        return super().refusal(host) or side_refusal(host, self.rank_at(host))

    def attach(self, model: nn.Module, hosts: Sequence[Host], setting: Setting) -> list[Attachment]:
        config = self.config(hosts, setting)
        with torch.random.fork_rng():
            torch.manual_seed(setting.seed)
            inject(model, hosts, config)
        return [PeftAttachment(host, model.get_submodule(host.path), self) for host in hosts]


def inject(model: nn.Module, hosts: Sequence[Host], config: Any) -> None:
    """Put peft's layers around what ``config`` targets; packed hosts are targets, too."""
    peft = peft_library(str(config.peft_type.value).lower())
    for host in hosts:
        if host.packed is not None:
            model.set_submodule(host.path, PackedBase(host.packed))
    peft.inject_adapter_in_model(config, model, NAME)


def peft_library(adapter: str) -> Any:
    """The library; ``AdapterError`` where it is not installed."""
    try:
        import peft
    except ImportError:
        raise AdapterError(
            f"adapter {adapter} is made by peft, which is not installed; run"
            " `pip install 'blockwright[heal]'`, or leave --adapter out"
        ) from None
    return peft
