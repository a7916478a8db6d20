"""Finds the channels of an FFN: which rows of its first matrices make which input of its last.

The last linear to run is the writer, its inputs a are the channels.  With zeros e added to what
the other linears give, the gradient of v a with respect to e is v_c times something that does not
depend on v, for every row of channel c and no other.  Two orders of rows are known: one piece
behind the other, and interleaved.  At the end a smaller FFN has to give what the whole one gives
with the other channels at zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from blockwright.anatomy.changed import With, copied
from blockwright.anatomy.narrowed import install_narrow, narrow_shapes, slices_of
from blockwright.types import Channels, Site

TOLERANCE = 1e-4
"""Largest difference of gradients that counts as none, relative to the largest of a linear."""
BlockRun = Callable[[nn.Module], Tensor]
"""Runs a block on some hidden states as the model does."""
Same = Callable[[Tensor, Tensor], bool]
"""Whether two outputs of the block are the same."""


def find_channels(
    block: nn.Module, prefix: str, members: Sequence[Site], run: BlockRun, same: Same
) -> tuple[Channels | None, str]:
    """The channels of an FFN, names relative to the block, or why there are none to leave out.

    ``members``: its linears in order of execution.
    """
    names = {site.id.removeprefix(prefix): site for site in members}
    if any(site.expert is not None for site in members):
        return None, "experts keep their width"
    *readers, writer = names
    width = names[writer].shape[1]
    gradients = _gradients(block, readers, writer, run)
    found: dict[str, tuple[int, bool]] = {}
    for name in readers:
        order = _order(*gradients[name], width) if name in gradients else None
        if order is None:
            return None, f"the rows of {name} do not belong to single inputs of {writer}"
        found[name] = order
    channels = Channels(writer=writer, width=width, readers=found)
    if not found or not narrows(block, prefix, names, channels, run, same):
        return None, f"a smaller {writer} gives something else than it does with inputs at zero"
    return channels, ""


def _weights(width: int) -> Tensor:
    """A number for each channel, all different."""
    return 1.0 + torch.arange(width) / width


def _gradients(
    block: nn.Module, readers: Sequence[str], writer: str, run: BlockRun
) -> dict[str, tuple[Tensor, Tensor]]:
    """Reader -> gradients [T, R] of the sum of all channels, and of v a, by what it gives."""
    added: dict[str, Tensor] = {}
    given: list[Tensor] = []

    def add(name: str, output: Tensor) -> Tensor:
        added[name] = torch.zeros_like(output, requires_grad=True)
        return output + added[name]

    with torch.enable_grad(), ExitStack() as hooks:
        for name in readers:
            module = block.get_submodule(name)
            handle = module.register_forward_hook(lambda _m, _i, o, name=name: add(name, o))
            hooks.callback(handle.remove)
        module = block.get_submodule(writer)
        handle = module.register_forward_pre_hook(lambda _m, inputs: given.append(inputs[0]))
        hooks.callback(handle.remove)
        run(block)
        (a_TI,) = given
        sums = [a_TI.sum(), (a_TI * _weights(a_TI.shape[-1]).to(a_TI)).sum()]
        parts = [
            torch.autograd.grad(s, list(added.values()), retain_graph=True, allow_unused=True)
            for s in sums
        ]
    return {
        name: (one.flatten(0, -2), other.flatten(0, -2))
        for name, one, other in zip(added, *parts, strict=True)
        if one is not None and other is not None
    }


def _order(plain_TR: Tensor, weighted_TR: Tensor, width: int) -> tuple[int, bool] | None:
    """Pieces, and whether they are interleaved; None where rows belong to no single channel."""
    rows = plain_TR.shape[1]
    if rows % width or not plain_TR.any():
        return None
    pieces, row_R = rows // width, torch.arange(rows)
    for interleaved, channel_R in ((False, row_R % width), (True, row_R // pieces)):
        expected_TR = plain_TR * _weights(width)[channel_R].to(plain_TR)
        if (weighted_TR - expected_TR).abs().max() <= TOLERANCE * plain_TR.abs().max():
            return pieces, interleaved
    return None


def narrows(
    block: nn.Module,
    prefix: str,
    names: Mapping[str, Site],
    channels: Channels,
    run: BlockRun,
    same: Same,
) -> bool:
    """Whether every third channel can be left out of the modules themselves, and they then give
    what whole ones give with it at zero.
    """
    kept = [channel for channel in range(channels.width) if channel % 3]
    members = [_local(site, name, prefix) for name, site in names.items()]
    slices = slices_of(members, channels, kept)
    own = {name: block.get_parameter(name) for name in slices}
    zeroed = {name: slices[name].zeroed(tensor) for name, tensor in own.items()}
    smaller = copied(block)
    install_narrow(smaller, narrow_shapes(members, channels, len(kept)))
    state = dict(block.named_parameters()) | {n: slices[n].of(t) for n, t in own.items()}
    try:
        given = run(With(smaller, state))
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return False  # its forward knows the width
    expected = run(With(block, zeroed))
    return given.shape == expected.shape and same(given, expected)


def _local(site: Site, name: str, prefix: str) -> Site:
    """The site under names relative to its block."""
    bias = None if site.bias is None else site.bias.removeprefix(prefix)
    parameter = site.parameter.removeprefix(prefix)
    return Site(
        id=name,
        kind=site.kind,
        shape=site.shape,
        parameter=parameter,
        bias=bias,
        transposed=site.transposed,
    )
