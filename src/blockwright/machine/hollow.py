"""A model without the weights of its sites: everything else runs as it does in the real one.

Stand-ins answer for linears, experts and tables with outputs of the right shape, and count how
often and for how many tokens they were asked.  What is left is attention, norms, routing, the KV
cache and what the framework itself takes.
"""

from __future__ import annotations

import copy
import inspect
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from blockwright.anatomy import Skeleton
from blockwright.checkpoint import materialize
from blockwright.errors import ModelError
from blockwright.formats import (
    ExpertStack,
    FormatLinear,
    PackedOperand,
    install_experts,
    install_operand,
    install_table,
)
from blockwright.types import Site, SiteKind


@dataclass
class Asked:
    """How often, and for how many tokens in all."""

    calls: int = 0
    tokens: int = 0

    def count(self, tokens: int) -> None:
        """One more call."""
        self.calls += 1
        self.tokens += tokens


class StandIn(nn.Module):
    """Answers for one site."""

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features, self.in_features = shape
        self.dtype = dtype
        self.products, self.lookups = Asked(), Asked()
        self.fresh = False
        """Whether every answer takes new memory, as a real product does."""
        self._answers: dict[tuple[torch.Size, str], Tensor] = {}

    @property
    def weight(self) -> PackedOperand:
        """What a model that asks its linears for their weight's dtype or device gets."""
        return PackedOperand(cast(FormatLinear, self))

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.out_features, self.in_features))

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]"""
        return self.product(x)

    def product(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]"""
        self.products.count(x.shape[:-1].numel())
        return self._answer(torch.Size((*x.shape[:-1], self.out_features)), x)

    def rows(self, index: Tensor) -> Tensor:
        """[N] -> [N, I]"""
        self.lookups.count(len(index))
        return self._answer(torch.Size((len(index), self.in_features)), index)

    def multiply(self, x: Tensor) -> Tensor:
        """As a model asks a packed weight for a product."""
        return self.product(x)

    def look_up(self, index: Tensor) -> Tensor:
        """As a model asks a packed table for rows."""
        return self.rows(index)

    def _answer(self, shape: torch.Size, asked: Tensor) -> Tensor:
        """Random values, the same for the same shape: routers send tokens to many experts."""
        key = (shape, str(asked.device))
        if key not in self._answers:
            draw = torch.Generator().manual_seed(len(self._answers))
            values = torch.randn(shape, generator=draw).to(self.dtype).to(asked.device)
            self._answers[key] = values
        return self._answers[key].clone() if self.fresh else self._answers[key]


class HollowStack(ExpertStack):
    """A stack of experts that are all stand-ins."""

    def __getitem__(self, expert: int | Tensor) -> PackedOperand:
        member = self.get_submodule(str(int(expert)))
        return PackedOperand(cast(FormatLinear, member), transposed=self.transposed)


@dataclass(frozen=True)
class Hollow:
    """A hollow model that runs, and its stand-ins by site id."""

    model: Any
    stand_ins: Mapping[str, StandIn]
    skeleton: Skeleton

    def forward(self, input_ids: Tensor, **options: Any) -> Any:
        """The model's own forward; logits of the last position alone where it can do that."""
        takes_last = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        last = {"logits_to_keep": 1} if takes_last else {}
        return self.model(input_ids=input_ids, **last, **options)


@torch.no_grad()
def hollow_model(skeleton: Skeleton, device: str = "cpu") -> Hollow:
    """The model of a skeleton with stand-ins at its sites and random values elsewhere.

    Raises ``ModelError`` for a model that takes no tokens.
    """
    if skeleton.task == "vision":
        raise ModelError(
            f"{skeleton.config.model_type}: memory and latency are counted for models of text"
        )
    configs = {id(m.config): m.config for m in skeleton.model.modules() if hasattr(m, "config")}
    shell = copy.deepcopy(skeleton.model, dict(configs))
    sites = [site for site in skeleton.sites if site.parameter]
    _install(shell, skeleton, sites)
    draw = torch.Generator().manual_seed(0)
    tensors = {name: _values(tensor, draw) for name, tensor in shell.state_dict().items()}
    model = materialize(shell, tensors, shell).to(device)
    return Hollow(model, {site.id: _stand_in(model, site) for site in sites}, skeleton)


def _values(tensor: Tensor, draw: torch.Generator) -> Tensor:
    if not tensor.is_floating_point():
        return torch.zeros(tensor.shape, dtype=tensor.dtype)
    return torch.rand(tensor.shape, generator=draw).to(tensor.dtype)


def _install(shell: Any, skeleton: Skeleton, sites: Sequence[Site]) -> None:
    experts: dict[str, list[Site]] = defaultdict(list)
    for site in sites:
        answer = cast(FormatLinear, StandIn(site.shape, skeleton.parameters[site.parameter].dtype))
        if site.expert is not None:
            experts[site.parameter].append(site)
        elif site.kind is SiteKind.TABLE:
            install_table(shell.get_submodule(site.module), answer)
            for parameter in site.tied_to:
                owner = shell.get_submodule(parameter.rpartition(".")[0])
                install_operand(owner, "weight", answer)
        else:
            shell.set_submodule(site.module, answer)
    for parameter, found in experts.items():
        path, _, name = parameter.rpartition(".")
        original = skeleton.parameters[parameter]
        members = [StandIn(site.shape, original.dtype) for site in found]
        stack = HollowStack(members, original.shape, original.dtype, transposed=found[0].transposed)
        install_experts(shell.get_submodule(path), name, stack)


def _stand_in(model: nn.Module, site: Site) -> StandIn:
    path = site.module
    if site.expert is not None:
        path = f"{site.parameter}_packed.{site.expert}"
    elif site.kind is SiteKind.TABLE:
        path = f"{site.module}.packed"
    return cast(StandIn, model.get_submodule(path))
