"""Where a recipe works in a model: linears of its blocks, the FFNs among them, and their channels.

FFNs are found as ``fit`` finds them, by running a block without some of its linears; no module is
known by its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from blockwright.anatomy import FoundPart, find_parts, find_sites
from blockwright.anatomy.blocks import find_blocks
from blockwright.errors import TrainingError
from blockwright.stream.calls import BlockCall
from blockwright.training.recipe import Place, Scope, TrainedMatrix, TrainingRecipe
from blockwright.types import Channels, PartRole, Site, SiteKind

Call = tuple[BlockCall, Tensor]
"""How a block was called, and its hidden states."""


@contextmanager
def under_recipe(
    model: PreTrainedModel, recipe: TrainingRecipe | None, ids: Tensor, only: str = "*"
) -> Iterator[list[TrainedMatrix]]:
    """Put the recipe's matrices in place of linears; inside, the model trains under it.

    ``ids`` [B, T] are some tokens to find FFNs with; ``only``: a glob over paths of linears.  At
    the end the model has its own linears again.  Raises ``TrainingError`` where nothing fits.
    """
    places = find_places(model, recipe.scope, ids, only) if recipe else []
    own = [model.get_submodule(place.name) for place in places]
    matrices: list[TrainedMatrix] = []
    for place, linear in zip(places, own, strict=True):
        if not (recipe and isinstance(linear, nn.Linear)):
            raise TrainingError(
                f"training: {place.name} is a {type(linear).__name__}, a recipe needs nn.Linear;"
                " leave it out with a pattern over the names of linears"
            )
        matrices.append(recipe.matrix(linear, place))
    try:
        for matrix in matrices:
            model.set_submodule(matrix.place.name, matrix)
        yield matrices
    finally:
        for place, linear in zip(places, own, strict=True):
            model.set_submodule(place.name, linear)


def find_places(model: PreTrainedModel, scope: Scope, ids: Tensor, only: str) -> list[Place]:
    """The places of a scope whose names match; ``TrainingError`` where there are none."""
    linears = {s.id: s for s in find_sites(model) if s.kind is SiteKind.LINEAR}
    if scope is Scope.LINEARS:
        found = [Place(name) for name in linears]
    else:
        ffns = list(_ffns(model, list(linears.values()), ids))
        found = _members(ffns) if scope is Scope.FFN else [_writer(model, ffn) for ffn in ffns]
    chosen = [place for place in found if fnmatchcase(place.name, only)]
    if not chosen:
        names = ", ".join(place.name for place in found[:3])
        raise TrainingError(
            f"training: no linear of the {scope.value} matches {only!r}; there are, e.g., {names}"
        )
    return chosen


def _members(ffns: list[tuple[str, FoundPart]]) -> list[Place]:
    return [Place(prefix + name) for prefix, ffn in ffns for name in ffn.members]


def _writer(model: PreTrainedModel, ffn: tuple[str, FoundPart]) -> Place:
    prefix, part = ffn
    if part.channels is None:
        raise TrainingError(
            f"training: {prefix[:-1]}: its FFN has no channels: {part.not_narrower}"
        )
    readers = {prefix + name: order for name, order in part.channels.readers.items()}
    channels = Channels(
        writer=prefix + part.channels.writer, width=part.channels.width, readers=readers
    )
    modules = {name: model.get_submodule(name) for name in readers}
    linears = {name: m for name, m in modules.items() if isinstance(m, nn.Linear)}
    return Place(channels.writer, channels, linears)


def _ffns(
    model: PreTrainedModel, linears: list[Site], ids: Tensor
) -> Iterator[tuple[str, FoundPart]]:
    """Prefix of a block's names and its FFN, block by block."""
    path, was_training = find_blocks(model, model.config), model.training
    model.eval()
    for name, (call, hidden) in _calls(model, path, ids).items():
        prefix, block = f"{name}.", model.get_submodule(name)
        own = [site for site in linears if site.id.startswith(prefix)]
        parts = find_parts(block, prefix, own, call.run, hidden)
        ffns = [part for part in parts if part.role is PartRole.FFN]
        if not ffns:
            raise TrainingError(f"training: {name}: its attention and its FFN cannot be told apart")
        yield from ((prefix, ffn) for ffn in ffns)
    model.train(was_training)


@torch.no_grad()
def _calls(model: PreTrainedModel, path: str, ids: Tensor) -> Mapping[str, Call]:
    """How every block is called on some tokens."""
    seen: dict[str, Call] = {}

    def note(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if args:
            seen[name] = BlockCall(args[1:], kwargs), args[0]
        else:
            rest = {key: value for key, value in kwargs.items() if key != "hidden_states"}
            seen[name] = BlockCall((), rest, "hidden_states"), kwargs["hidden_states"]

    with ExitStack() as hooks:
        for index, block in enumerate(model.get_submodule(path).children()):
            name = f"{path}.{index}"
            handle = block.register_forward_pre_hook(
                lambda _block, args, kwargs, name=name: note(name, args, kwargs), with_kwargs=True
            )
            hooks.callback(handle.remove)
        model(input_ids=ids, use_cache=False)
    return seen
