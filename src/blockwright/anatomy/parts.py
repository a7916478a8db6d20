"""Finds the parts of a block: its attention and its FFN, without knowing its modules.

The block is run with the linears of some of its modules at zero, biases included; F(A) is what it
gives without those of A.

    one part       A and B write together when one of them is dead without the other:
                   F(A u B) = F(A) or F(A u B) = F(B)        (OPT's fc1 without fc2)
    attention      with all other parts at zero, another token changes what a token gives
    what to leave  modules of the part are replaced by ones that answer zeros (the last to run) or
                   hand on what they got, as high up as the block still gives F(part); BERT's dense
                   layer goes without the norm and the residual that stand in the same module
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from blockwright.anatomy.absent import install_absent
from blockwright.anatomy.changed import With, copied
from blockwright.anatomy.channels import find_channels
from blockwright.anatomy.head_dims import find_head_dims
from blockwright.anatomy.heads import find_heads
from blockwright.types import AbsentModule, Channels, HeadDims, PartRole, Site

TOLERANCE = 1e-5
"""Largest difference, relative to what the block adds, of outputs that count as the same."""
MIXED = 1e-3
"""Least change of other tokens, relative to that of the changed one, that counts as mixing."""
BlockRun = Callable[[nn.Module, Tensor], Tensor]
"""Runs a block on hidden states [B, T, H] as the model does."""


@dataclass(frozen=True)
class FoundPart:
    """A part; all names are relative to the block."""

    role: PartRole
    members: tuple[str, ...]
    """Site names."""
    absent: tuple[AbsentModule, ...] = ()
    refused: str = ""
    """Why nothing can stand for it; empty when something does."""
    writes_all: bool = True
    """Whether the block without all its parts hands on what it got."""
    channels: Channels | None = None
    """Of a part whose width can be less: of an FFN, or key-value heads."""
    not_narrower: str = ""
    """Why it cannot."""
    heads: HeadDims | None = None
    """Of an attention whose heads can have fewer dimensions."""
    no_dims: str = ""
    """Why they cannot."""


@torch.no_grad()
def find_parts(
    block: nn.Module, prefix: str, linears: Sequence[Site], run: BlockRun, hidden_BTH: Tensor
) -> tuple[FoundPart, ...]:
    """The parts of a block with its weights, fp32, in order of execution; none where attention and
    FFN cannot be told apart.  ``prefix``: of the block's names, ``model.layers.3.``.
    """
    trial = _Trial.of(block, prefix, linears, run, hidden_BTH)
    parts = _joined(trial, trial.holding(("",)))
    if len(parts) < 2:
        return ()
    nothing = trial.without(path for part in parts for path in part)
    writes_all = trial.same(nothing, hidden_BTH)
    found = (_found(trial, part, [p for p in parts if p is not part]) for part in parts)
    return tuple(_with_channels(trial, replace(part, writes_all=writes_all)) for part in found)


Modules = tuple[str, ...]
"""Paths inside the block."""


@dataclass(frozen=True)
class _Trial:
    """A block, its linears, and what it gives."""

    block: nn.Module
    linears: dict[str, list[Site]]
    """Path of a module inside the block -> the linears that are it, or that it holds itself."""
    prefix: str
    run: BlockRun
    hidden_BTH: Tensor  # noqa: N815 - shape suffix
    outputs_BTH: Tensor  # noqa: N815 - shape suffix
    order: dict[str, int]
    """Path of a module -> its place in the order in which modules end."""
    lengths: dict[str, int]
    """Path -> length of the tuple it answers with; 0: a tensor."""

    @classmethod
    def of(
        cls,
        block: nn.Module,
        prefix: str,
        linears: Sequence[Site],
        run: BlockRun,
        hidden_BTH: Tensor,
    ) -> _Trial:
        order: dict[str, int] = {}
        lengths: dict[str, int] = {}

        def note(path: str, output: Any) -> None:
            order[path] = len(order)
            lengths[path] = len(output) if isinstance(output, tuple) else 0

        with ExitStack() as hooks:
            for path, module in block.named_modules():
                hook = module.register_forward_hook(lambda _m, _i, o, path=path: note(path, o))
                hooks.callback(hook.remove)
            outputs = run(block, hidden_BTH)
        held: dict[str, list[Site]] = {}
        for site in linears:
            owner = site.parameter.removeprefix(prefix).rpartition(".")[0]
            held.setdefault(owner, []).append(site)
        return cls(block, held, prefix, run, hidden_BTH, outputs, order, lengths)

    def holding(self, paths: Modules) -> Modules:
        """The modules that hold linears, below ``paths`` where that is one module around others."""
        while len(paths) == 1 and paths[0] not in self.linears:
            paths = self.inner(paths[0])
        return paths

    def inner(self, path: str) -> Modules:
        """A module's children that hold linears, in order of execution; none where it is one."""
        if path in self.linears:
            return ()
        start = f"{path}." if path else ""
        names = {
            start + owner.removeprefix(start).partition(".")[0]
            for owner in self.linears
            if owner.startswith(start)
        }
        return tuple(sorted(names, key=lambda name: self.order.get(name, -1)))

    def sites(self, paths: Iterable[str]) -> list[Site]:
        """The linears in some modules."""
        chosen = tuple(paths)
        return [
            site
            for owner, found in self.linears.items()
            if any(owner == path or owner.startswith(f"{path}.") for path in chosen)
            for site in found
        ]

    def without(self, paths: Iterable[str], hidden_BTH: Tensor | None = None) -> Tensor:
        """F: what the block gives with the linears in some modules at zero."""
        names = {n for s in self.sites(paths) for n in (s.parameter, s.bias) if n is not None}
        zeros = {}
        for name in (name.removeprefix(self.prefix) for name in names):
            parameter = self.block.get_parameter(name)
            zeros[name] = parameter.new_zeros(()).expand(parameter.shape)
        given = self.hidden_BTH if hidden_BTH is None else hidden_BTH
        return self.run(With(self.block, zeros), given)

    def same(self, one: Tensor, other: Tensor) -> bool:
        added = (self.outputs_BTH - self.hidden_BTH).norm()
        return bool((one - other).norm() <= TOLERANCE * added)


def _joined(trial: _Trial, tops: Modules) -> list[Modules]:
    """The modules that write together."""
    alone = {top: trial.without((top,)) for top in tops}
    parts: list[Collection[str]] = [{top} for top in tops]
    for one, other in combinations(tops, 2):
        both = trial.without((one, other))
        if trial.same(both, alone[one]) or trial.same(both, alone[other]):
            joined = {top for part in parts if one in part or other in part for top in part}
            parts = [part for part in parts if not joined.intersection(part)] + [joined]
    ordered = [tuple(top for top in tops if top in part) for part in parts]
    return sorted(ordered, key=lambda part: tops.index(part[0]))


def _found(trial: _Trial, part: Modules, others: Sequence[Modules]) -> FoundPart:
    role = PartRole.ATTENTION if _mixes(trial, others) else PartRole.FFN
    names = tuple(site.id.removeprefix(trial.prefix) for site in trial.sites(part))
    wanted, tried = trial.without(part), part
    while tried:
        absent = tuple(
            AbsentModule(path=path, silent=path == tried[-1], outputs=trial.lengths.get(path, 0))
            for path in tried
        )
        if _stands(trial, absent, wanted):
            return FoundPart(role, names, absent)
        inner = trial.inner(tried[-1])
        tried = (*tried[:-1], *inner) if inner else ()
    return FoundPart(
        role,
        names,
        refused=f"nothing can stand for the {role.value} ({', '.join(part)}): the block gives"
        " something else with its modules left out than with its weights at zero",
    )


def _with_channels(trial: _Trial, part: FoundPart) -> FoundPart:
    """A part with its channels or heads, or with the reason why it has none."""
    search = find_channels if part.role is PartRole.FFN else find_heads
    own = {
        site.id.removeprefix(trial.prefix): site
        for found in trial.linears.values()
        for site in found
    }
    members = sorted(
        (own[name] for name in part.members),
        key=lambda site: trial.order.get(site.module.removeprefix(trial.prefix), -1),
    )

    def run(block: nn.Module) -> Tensor:
        return trial.run(block, trial.hidden_BTH)

    channels, reason = search(
        trial.block,
        trial.prefix,
        members,
        run,
        trial.same,
    )
    part = replace(part, channels=channels, not_narrower=reason)
    if part.role is PartRole.FFN:
        return part
    heads, reason = find_head_dims(trial.block, trial.prefix, members, channels, run, trial.same)
    return replace(part, heads=heads, no_dims=reason)


def _mixes(trial: _Trial, others: Sequence[Modules]) -> bool:
    """Whether a token's outputs depend on another's hidden states, all other parts at zero."""
    silent = [path for part in others for path in part]
    changed_BTH = trial.hidden_BTH.clone()
    changed_BTH[:, 0] = trial.hidden_BTH[:, 0].flip(-1)
    change_BTH = trial.without(silent) - trial.without(silent, changed_BTH)
    return bool(change_BTH[:, 1:].norm() > MIXED * change_BTH[:, 0].norm())


def _stands(trial: _Trial, absent: tuple[AbsentModule, ...], wanted_BTH: Tensor) -> bool:
    """Whether the block without these modules gives what it should."""
    block = copied(trial.block)
    install_absent(block, absent)
    try:
        given = trial.run(block, trial.hidden_BTH)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return False  # its neighbours need more of it than hidden states
    return given.shape == wanted_BTH.shape and trial.same(given, wanted_BTH)
