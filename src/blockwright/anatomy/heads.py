"""Finds the heads of an attention: which rows of its first matrices make which inputs of its last.

The last linear to run is the writer; its inputs are what the heads give, side by side.  A change of
an output of another linear reaches the inputs of its head alone, and most of them where it is a
key: the inputs of all query heads that read one key-value head.  So many are one channel, and every
linear has the same number of rows for each, in order.  At the end
smaller attention has to give what the whole one gives with the other heads at zero; where queries,
keys and values stand behind each other in one matrix, or the forward knows the number of heads, it
does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from blockwright.anatomy.channels import BlockRun, Same, narrows
from blockwright.types import Channels, Site

UNCHANGED = 1e-5
"""Largest change of an input that counts as none, relative to the largest one."""
TRIED = 8
"""Outputs of a linear that are changed, one after another."""


def find_heads(
    block: nn.Module, prefix: str, members: Sequence[Site], run: BlockRun, same: Same
) -> tuple[Channels | None, str]:
    """The key-value heads of an attention, names relative to the block, or why none can be left
    out.  ``members``: its linears in order of execution.
    """
    names = {site.id.removeprefix(prefix): site for site in members}
    if any(site.expert is not None for site in members):
        return None, "experts keep their width"
    *readers, writer = names
    width_of_writer = names[writer].shape[1]
    reached = [_reached(block, names[reader], reader, writer, run) for reader in readers]
    columns = max(reached, default=0)
    if not columns or width_of_writer % columns:
        return None, f"the inputs of {writer} are no heads that can be told apart"
    heads = width_of_writer // columns
    if heads < 2:
        return None, "it has one key-value head"
    found: dict[str, tuple[int, bool]] = {}
    for name in readers:
        rows = names[name].shape[0]
        if rows % heads:
            return None, f"the rows of {name} do not belong to single heads"
        found[name] = (rows // heads, True)
    channels = Channels(writer=writer, width=heads, readers=found, columns=columns)
    if not narrows(block, prefix, names, channels, run, same):
        return None, (
            f"the rows of {', '.join(readers)} are not in the order of heads, or its forward knows"
            " how many there are"
        )
    return channels, ""


def _reached(block: nn.Module, reader: Site, name: str, writer: str, run: BlockRun) -> int:
    """How many inputs of the writer change with an output of a reader at the first token: the most
    of some outputs, among which a key is where queries, keys and values are one matrix.
    """
    before, found = _inputs(block, writer, run), 0
    for row in range(0, reader.shape[0], max(1, reader.shape[0] // TRIED)):
        change_I = (_inputs(block, writer, run, name, row) - before).abs().flatten(0, -2).amax(0)
        if change_I.any():
            found = max(found, int((change_I > UNCHANGED * change_I.max()).sum()))
    return found


def _inputs(
    block: nn.Module, writer: str, run: BlockRun, changed: str = "", row: int = 0
) -> Tensor:
    """Inputs of the writer [..., I], with an output of a linear changed at the first token."""
    given: list[Tensor] = []

    def change(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        moved = output.clone()
        first = moved[..., 0, row]
        first += output.square().mean().sqrt() + 1.0
        return moved

    with torch.no_grad(), ExitStack() as hooks:
        module = block.get_submodule(writer)
        handle = module.register_forward_pre_hook(lambda _m, inputs: given.append(inputs[0]))
        hooks.callback(handle.remove)
        if changed:
            hook = block.get_submodule(changed).register_forward_hook(change)
            hooks.callback(hook.remove)
        run(block)
    return given[0]
