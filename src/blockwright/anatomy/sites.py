"""Finds the sites of a model: what a candidate can replace.

Linear sites are ``nn.Linear``, transformers' ``Conv1D`` (which stores the transpose) and the
matrices of experts: slices of a 3-D parameter whose layout transformers' interface for experts
declares.  3-D parameters without that declaration are no sites.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch import nn
from transformers.pytorch_utils import Conv1D

from blockwright.anatomy.blocks import find_blocks
from blockwright.types import Site, SiteKind, TableRole

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def find_sites(model: PreTrainedModel) -> tuple[Site, ...]:
    """All sites: tables, then block by block its linears and the block itself (``ModelError``)."""
    path = find_blocks(model, model.config)
    inside = (
        site
        for index, block in enumerate(model.get_submodule(path).children())
        for site in block_sites(block, f"{path}.{index}", index)
    )
    return (*table_sites(model), *inside)


def block_sites(block: nn.Module, path: str, index: int) -> tuple[Site, ...]:
    """All linear sites of a block in the order of its modules, then the block itself."""
    linears = tuple(_linear_sites(block, path, index))
    whole = Site(
        id=path, kind=SiteKind.BLOCK, block=index, weights=sum(site.weights for site in linears)
    )
    return (*linears, whole)


def table_sites(model: PreTrainedModel) -> tuple[Site, ...]:
    """Input embedding and output projection; one site of role ``TIED`` if they share a tensor."""
    embedding, head = _input_embedding(model), model.get_output_embeddings()
    paths = {id(module): path for path, module in model.named_modules()}
    sites = []
    if isinstance(embedding, nn.Embedding):
        sites.append(_table(paths[id(embedding)], embedding, TableRole.EMBEDDING))
    if isinstance(head, nn.Linear):
        sites.append(_table(paths[id(head)], head, TableRole.HEAD))
    return (_tied(*sites),) if _share_tensor(model, sites) else tuple(sites)


def _share_tensor(model: PreTrainedModel, sites: Sequence[Site]) -> bool:
    """Whether these are one tensor, or will be: while a model loads, its ties are only declared."""
    names = {site.parameter for site in sites}
    same = len({id(model.get_parameter(name)) for name in names}) < len(sites)
    declared = getattr(model, "all_tied_weights_keys", {})
    return same or any({target, source} == names for target, source in declared.items())


def _input_embedding(model: PreTrainedModel) -> nn.Module | None:
    try:
        found: nn.Module | None = model.get_input_embeddings()
    except NotImplementedError:  # transformers' way of saying that there is none
        return None
    return found


def _linear_sites(block: nn.Module, path: str, index: int) -> Iterator[Site]:
    inside_attention = {
        id(child)
        for module in block.modules()
        if isinstance(module, nn.MultiheadAttention)
        for child in module.modules()
    }
    for name, module in block.named_modules():
        if id(module) in inside_attention:
            continue
        below = f"{path}.{name}" if name else path
        if isinstance(module, nn.Linear | Conv1D):
            yield _linear(below, module, index)
        elif hasattr(module, "is_transposed") and hasattr(module, "has_gate"):
            yield from _experts(below, module, index)


def _linear(path: str, module: nn.Module, index: int) -> Site:
    weight = module.get_parameter("weight")
    transposed = isinstance(module, Conv1D)
    rows, columns = weight.shape
    return Site(
        id=path,
        kind=SiteKind.LINEAR,
        block=index,
        shape=(columns, rows) if transposed else (rows, columns),
        parameter=f"{path}.weight",
        bias=f"{path}.bias" if getattr(module, "bias", None) is not None else None,
        transposed=transposed,
        weights=weight.numel(),
    )


def _experts(path: str, module: nn.Module, index: int) -> Iterator[Site]:
    own = dict(module.named_parameters(recurse=False))
    transposed = bool(module.is_transposed)
    for name, stack in own.items():
        if stack.ndim != 3:
            continue
        experts, rows, columns = stack.shape
        for expert in range(experts):
            yield Site(
                id=f"{path}.{name}[{expert}]",
                kind=SiteKind.LINEAR,
                block=index,
                shape=(columns, rows) if transposed else (rows, columns),
                parameter=f"{path}.{name}",
                bias=f"{path}.{name}_bias" if f"{name}_bias" in own else None,
                expert=expert,
                transposed=transposed,
                weights=rows * columns,
                tie=f"{path}.{name}",
            )


def _table(path: str, module: nn.Module, role: TableRole) -> Site:
    weight = module.get_parameter("weight")
    rows, columns = weight.shape
    return Site(
        id=path,
        kind=SiteKind.TABLE,
        shape=(rows, columns),
        parameter=f"{path}.weight",
        bias=f"{path}.bias" if getattr(module, "bias", None) is not None else None,
        role=role,
        weights=weight.numel(),
    )


def _tied(embedding: Site, head: Site) -> Site:
    return Site(
        id=embedding.id,
        kind=SiteKind.TABLE,
        shape=embedding.shape,
        parameter=embedding.parameter,
        bias=head.bias,
        role=TableRole.TIED,
        tied_to=(head.parameter,),
        weights=embedding.weights,
    )
