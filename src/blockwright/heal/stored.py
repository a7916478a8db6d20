"""Adapters that train what a format itself stores: nothing is added, nothing has to be merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from blockwright.heal.adapter import Adapter, Attachment, Host, Replacement, Setting
from blockwright.tuning import TrainedTensor, depended_on


class StoredAttachment(Attachment):
    """Some stored tensors of a packed module."""

    def __init__(self, host: Host, names: Sequence[str]) -> None:
        super().__init__(host)
        if host.packed is None:
            raise TypeError(f"{host.name} stores no packed tensors")
        self.packed = host.packed
        self.names = tuple(names)
        for name in names:
            self.trained[name] = TrainedTensor(self.packed.stored_tensor(name))
            part, _, leaf = name.rpartition(".")
            self.placed[name] = self.packed.get_submodule(part), leaf
        self.packed.tuned = True

    @torch.no_grad()
    def effective(self) -> Tensor:
        for name, item in self.trained.items():
            self.packed.replace_stored(name, item.value())
        return self.packed.differentiable_weight()

    def merged(self) -> nn.Module:
        return self.packed

    def replacement(self, dtype: torch.dtype) -> Replacement:
        return Replacement(tensors={name: item.stored() for name, item in self.trained.items()})


@dataclass(frozen=True, kw_only=True)
class StoredAdapter(Adapter):
    """Trains floating-point tensors that the weight depends on."""

    only: ClassVar[str] = ""
    """Beginning of the names that are trained; empty: all."""

    def refusal(self, host: Host) -> str:
        if found := super().refusal(host):
            return found
        return "" if self.names(host) else f"{host.name} has no trainable parameter"

    def names(self, host: Host) -> list[str]:
        """Tensors of a host that are trained."""
        if host.packed is None:
            return []
        host.packed.restore()
        return [name for name in depended_on(host.packed) if name.startswith(self.only)]

    def attach(self, model: nn.Module, hosts: Sequence[Host], setting: Setting) -> list[Attachment]:
        return [StoredAttachment(host, self.names(host)) for host in hosts]
