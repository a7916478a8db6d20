"""Turns a module on ``meta`` into a real one: stored tensors put in, computed buffers filled.

Buffers that no checkpoint holds (rotary frequencies, embedding scales, position ids) are filled by
the model's own weight initialisation, as in ``from_pretrained``; it skips every loaded tensor.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping

import torch
import transformers.initialization as init
from torch import Tensor, nn
from transformers import PreTrainedModel

from blockwright.errors import CheckpointError, ModelError


@torch.no_grad()
def materialize(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    model: PreTrainedModel,
    *,
    leave: Collection[str] = (),
) -> nn.Module:
    """A copy of ``module`` on CPU, in evaluation mode; the original stays on ``meta``.

    ``tensors``: by name inside ``module``, used without a copy; ``model``: the model that it is
    part of (or is); ``leave``: paths inside ``module`` of what is not copied: the original's own
    modules stand there, on ``meta``.
    Raises ``CheckpointError`` when a parameter is not among the tensors.
    """
    owner = _owner(model, module)
    shared = {id(m.config): m.config for m in module.modules() if hasattr(m, "config")}
    shared |= {id(left): left for left in map(module.get_submodule, leave)}
    real = copy.deepcopy(module, shared)
    _fill_parameters(real, tensors, leave)
    computed = _empty_buffers(real, tensors, leave)
    with init.guard_torch_init_functions():
        for submodule, initializer in _children_first(real, owner, "", leave):
            initializer._initialize_weights(submodule, initializer.is_custom_code())
    for name in computed:
        _check_filled(name, real.get_buffer(name))
    return real.eval()


def _owner(model: PreTrainedModel, module: nn.Module) -> PreTrainedModel:
    """The innermost pretrained model around a module: its ``_init_weights`` knows the module."""
    if isinstance(module, PreTrainedModel):
        return module
    holders = [m for m in model.modules() if isinstance(m, PreTrainedModel)]
    inside = [m for m in holders if any(part is module for part in m.modules())]
    return inside[-1] if inside else model


def _left(name: str, leave: Collection[str]) -> bool:
    return any(name == path or name.startswith(path + ".") for path in leave)


def _fill_parameters(
    real: nn.Module, tensors: Mapping[str, Tensor], leave: Collection[str]
) -> None:
    shared: dict[int, nn.Parameter] = {}
    for name, old in list(real.named_parameters(remove_duplicate=False)):
        if _left(name, leave):
            continue
        if name not in tensors:
            raise CheckpointError(f"no tensor for the parameter {name} {list(old.shape)}")
        tensor = tensors[name]
        if id(tensor) not in shared:
            shared[id(tensor)] = nn.Parameter(tensor, requires_grad=False)
            shared[id(tensor)]._is_hf_initialized = True  # type: ignore[attr-defined]
        path, _, leaf = name.rpartition(".")
        real.get_submodule(path)._parameters[leaf] = shared[id(tensor)]


def _empty_buffers(
    real: nn.Module, tensors: Mapping[str, Tensor], leave: Collection[str]
) -> list[str]:
    """Put stored buffers in, poison the others; returns the names of those to compute."""
    computed = []
    for name, old in list(real.named_buffers(remove_duplicate=False)):
        if _left(name, leave):
            continue
        path, _, leaf = name.rpartition(".")
        if name in tensors:
            buffer = tensors[name]
            buffer._is_hf_initialized = True  # type: ignore[attr-defined]
        else:
            buffer = torch.full_like(old, _poison(old.dtype), device="cpu")
            computed.append(name)
        real.get_submodule(path)._buffers[leaf] = buffer
    return computed


def _poison(dtype: torch.dtype) -> float | int | bool:
    """A value that no computed buffer holds (bytes and flags aside), to notice an unfilled one."""
    if dtype.is_floating_point or dtype.is_complex:
        return float("nan")
    return False if dtype == torch.bool else torch.iinfo(dtype).max


def _check_filled(name: str, buffer: Tensor) -> None:
    poison = _poison(buffer.dtype)
    if buffer.dtype.itemsize == 1 or not buffer.numel():
        return
    whole = not (buffer.is_floating_point() or buffer.is_complex())
    untouched = buffer == poison if whole else buffer.isnan()
    if untouched.any():
        raise ModelError(
            f"the buffer {name} is in no checkpoint and the model's own initialisation leaves it"
            " empty; this architecture cannot be run block by block"
        )


def _children_first(
    module: nn.Module, owner: PreTrainedModel, path: str, leave: Collection[str]
) -> Iterator[tuple[nn.Module, PreTrainedModel]]:
    """Modules in transformers' order of initialisation, each with the model that initialises it."""
    for name, child in module.named_children():
        below = f"{path}.{name}" if path else name
        if not _left(below, leave):
            inner = child if isinstance(child, PreTrainedModel) else owner
            yield from _children_first(child, inner, below, leave)
    yield module, owner
