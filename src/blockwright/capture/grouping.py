"""Which linears of a block read one tensor, and what can take a scale of it.

Both are seen while the block runs on a few tokens: linears share an input when they multiply the
same memory; its producer is the module whose output that memory is.  A producer of which every
parameter has one number per feature (a norm) can take in 1 / t.  Whether it really can is tried:
with random t, the folded norm and the scaled weights must give the block's own outputs.  That also
refuses inputs that somebody else reads (a router, a residual).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from blockwright.capture.observe import BlockObserver
from blockwright.numerics.folds import fold_scale
from blockwright.stream import LinearTap, Stem, Stream, with_weights
from blockwright.types import Site, SiteKind

TOLERANCE = 1e-4
"""Largest relative difference of what a block adds, fp32, with a random scale folded."""
OFFSETS = (0.0, 1.0)
"""A norm multiplies by its parameter, or by 1 + parameter."""


@dataclass(frozen=True)
class FoundGroup:
    """Linears with one input; all names are relative to the block."""

    members: tuple[str, ...]
    """Site names, in order of execution."""
    parameters: tuple[str, ...] = ()
    """Those of the producer."""
    offsets: tuple[float, ...] = ()
    refused: str = ""
    """Why no scale can be folded; empty when one can."""


@torch.no_grad()
def find_groups(
    stream: Stream, index: int, stem: Stem, hidden_BTH: Tensor
) -> tuple[FoundGroup, ...]:
    """Groups of a block, seen on the first batch ``hidden_BTH``; ``stream`` computes in fp32.

    A single linear whose input no parameters make is left out.
    """
    block = stream.block(index)
    call = stem.calls[0][index]
    watched = [s for s in stream.skeleton.block_sites(index) if s.kind is SiteKind.LINEAR]
    watched = [site for site in watched if site.expert is None]
    sites = {site.id: site for site in watched}
    seen = _Seen()
    with seen.watching(block), LinearTap(stream.parameters(index, block), sites, seen):
        outputs = call.run(block, hidden_BTH)
    trial = _Trial(block, f"{stream.skeleton.block_path}.{index}.", call, hidden_BTH, outputs)
    found = []
    for names in seen.groups():
        producer = seen.producers.get(names[0], "")
        if producer or len(names) > 1:
            found.append(_judge(trial, [sites[name] for name in names], producer))
    return tuple(found)


class _Seen(BlockObserver):
    """Sees which sites share an input, and which module's output it is."""

    def __init__(self) -> None:
        super().__init__(())
        self._made: dict[tuple[int, int], str] = {}
        self._outputs: list[Tensor] = []  # keeps an address from being reused
        self.producers: dict[str, str] = {}
        """Site id -> path of the module inside the block."""

    @contextmanager
    def watching(self, block: nn.Module) -> Iterator[None]:
        """Note the outputs of all modules whose own parameters are vectors."""

        def note(path: str, output: Any) -> None:
            if isinstance(output, Tensor):
                self._outputs.append(output)
                self._made[output.data_ptr(), output.numel()] = path

        hooks = [
            module.register_forward_hook(lambda _m, _i, output, path=path: note(path, output))
            for path, module in block.named_modules()
            if _is_vectors(module)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def __call__(self, site: Site, x_TI: Tensor, output: Tensor) -> None:
        super().__call__(site, x_TI, output)
        maker = self._made.get((x_TI.data_ptr(), x_TI.numel()))
        if maker is not None:
            self.producers[site.id] = maker


def _is_vectors(module: nn.Module) -> bool:
    own = list(module.parameters(recurse=False))
    return bool(own) and all(parameter.ndim == 1 for parameter in own)


@dataclass(frozen=True)
class _Trial:
    """A block, how it is called, and what it gives."""

    block: nn.Module
    prefix: str
    call: Any
    hidden_BTH: Tensor  # noqa: N815 - shape suffix
    outputs_BTH: Tensor  # noqa: N815 - shape suffix

    def difference(self, tensors: Mapping[str, Tensor]) -> float:
        """Relative to what the block adds to its inputs, with some parameters replaced."""
        changed = self.call.run(_With(self.block, tensors), self.hidden_BTH)
        added = (self.outputs_BTH - self.hidden_BTH).norm()
        return float((changed - self.outputs_BTH).norm() / added)


class _With(nn.Module):
    """A block called with other parameters."""

    def __init__(self, block: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._block, self._tensors = block, dict(tensors)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return functional_call(self._block, self._tensors, args, kwargs)


def _judge(trial: _Trial, members: Sequence[Site], producer: str) -> FoundGroup:
    """Try to fold a random scale into the producer of the members' input."""
    names = tuple(site.id.removeprefix(trial.prefix) for site in members)
    features = members[0].shape[1]
    if not producer:
        return FoundGroup(names, refused="no norm of the block makes their input")
    own = dict(trial.block.get_submodule(producer).named_parameters(recurse=False))
    parameters = tuple(f"{producer}.{name}" for name in own)
    if any(len(tensor) != features for tensor in own.values()):
        return FoundGroup(names, refused=f"{producer} has no parameter for each of its outputs")
    generator = torch.Generator().manual_seed(0)
    t_I = torch.exp2(2 * torch.rand(features, generator=generator) - 1)
    least = float("inf")
    for offsets in product(OFFSETS, repeat=len(own)):
        folded = fold_scale(list(own.values()), offsets, t_I)
        tensors = dict(zip(parameters, folded.parameters, strict=True))
        difference = trial.difference(tensors | _scaled(trial, members, folded.t_I))
        if difference < TOLERANCE:
            return FoundGroup(names, parameters, offsets)
        least = min(least, difference)
    return FoundGroup(
        names,
        refused=f"a scale folded into {producer} changes what the block adds by {least:.2g}"
        f" (allowed {TOLERANCE:g}): something else reads the output of {producer}",
    )


def _scaled(trial: _Trial, members: Sequence[Site], t_I: Tensor) -> dict[str, Tensor]:
    """The members' weights times t, as their parameters store them."""
    found = {}
    for site in members:
        name = site.parameter.removeprefix(trial.prefix)
        parameter = trial.block.get_parameter(name).clone()
        W_OI = parameter.T if site.transposed else parameter
        found[name] = with_weights(parameter, {site: W_OI * t_I})
    return found
