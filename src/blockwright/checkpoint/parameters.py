"""Model parameters out of checkpoint tensors, through transformers' own conversion mapping.

Names and layouts differ between the two: legacy names, a missing or extra base-model prefix,
experts stored one by one and merged into one 3-D parameter.  Only what is asked for is read.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from blockwright.checkpoint.reader import Checkpoint
from blockwright.errors import CheckpointError


@dataclass
class TensorGroup:
    """Checkpoint tensors that together make one or more model parameters."""

    first: str
    """The first parameter they make."""
    converter: Any
    """A ``WeightConverter`` to copy and fill; None where the one tensor is only renamed."""
    members: list[tuple[str, str]] = field(default_factory=list)
    """(source pattern, checkpoint name), in checkpoint order."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """All parameters that they make."""
        if self.converter is None:
            return (self.first,)
        targets = self.converter.target_patterns
        return tuple(self.first.replace(targets[0], target) for target in targets)

    def convert(self, tensors: dict[str, Tensor], model: PreTrainedModel) -> dict[str, Tensor]:
        """Parameters from the tensors of its members, which are taken out of ``tensors``."""
        if self.converter is None:
            return {self.first: tensors.pop(self.members[0][1])}
        converter = copy.deepcopy(self.converter)
        for pattern, name in self.members:
            converter.add_tensor(self.first, name, pattern, tensors.pop(name))
        made = converter.convert(self.first, model=model, config=model.config)
        return {name: v[0] if isinstance(v, list) else v for name, v in made.items()}


class ParameterSource:
    """Reads the parameters and persistent buffers of a model (on ``meta``) from a checkpoint."""

    def __init__(self, model: PreTrainedModel, checkpoint: Checkpoint) -> None:
        """Only names are looked at.  Raises ``CheckpointError`` where tied tensors differ."""
        self._model, self._checkpoint = model, checkpoint
        self._expected: dict[str, Tensor] = dict(model.state_dict())
        groups, unused = _grouped(model, checkpoint, self._expected)
        self._groups = {name: group for group in groups for name in group.parameters}
        self._resolve_ties(model.all_tied_weights_keys)
        self.unused: tuple[str, ...] = unused
        """Checkpoint tensors that no parameter uses."""
        self.missing: tuple[str, ...] = tuple(n for n in self._expected if n not in self._groups)
        """Parameters and persistent buffers that the checkpoint does not hold."""

    def sources(self, parameter: str) -> tuple[str, ...]:
        """Names of the checkpoint tensors that a parameter is made from."""
        return tuple(name for _, name in self._group(parameter).members)

    def load(self, parameters: Iterable[str]) -> dict[str, Tensor]:
        """Tensors by parameter name, in the model's dtypes; tied parameters share one tensor.

        Raises ``CheckpointError`` for a missing tensor or another shape.
        """
        wanted = tuple(parameters)
        made: dict[str, Tensor] = {}
        for group in {id(self._group(name)): self._group(name) for name in wanted}.values():
            made |= self._convert(group)
        result = {}
        for name in wanted:
            tensor = made[self._made_name(name)]
            self._check_shape(name, tensor)
            result[name] = tensor
        return result

    def check_shapes(self) -> None:
        """Check presence and shape of every parameter by headers alone (``CheckpointError``)."""
        for name in self._expected:
            self._group(name)
        for group in {id(group): group for group in self._groups.values()}.values():
            stored = {n: self._stand_in(n) for _, n in group.members}
            made = self._run(group, stored)
            for name in group.parameters:
                if name in self._expected:
                    self._check_shape(name, made[name])

    def _made_name(self, parameter: str) -> str:
        """The name under which its group makes a parameter (another one when it is tied)."""
        names = self._groups[parameter].parameters
        return parameter if parameter in names else self._tied_name[parameter]

    def _resolve_ties(self, ties: dict[str, str]) -> None:
        """Let parameters that share a tensor find it under whichever name it is stored."""
        self._tied_name: dict[str, str] = {}
        families: dict[str, list[str]] = {}
        for target, source in ties.items():
            families.setdefault(source, [source]).append(target)
        for family in families.values():
            stored = [name for name in family if name in self._groups]
            for name in stored[1:]:
                self._check_equal(stored[0], name)
            for name in family if stored else ():
                self._tied_name[name] = stored[0]
                self._groups[name] = self._groups[stored[0]]

    def _check_equal(self, kept: str, other: str) -> None:
        digests = [
            [self._checkpoint.digest(n) for _, n in self._groups[name].members]
            for name in (kept, other)
        ]
        if digests[0] != digests[1]:
            raise CheckpointError(
                f"{self._checkpoint.folder}: config.json ties {other} to {kept}, but the checkpoint"
                ' holds two different tensors; set "tie_word_embeddings": false in config.json'
            )

    def _group(self, parameter: str) -> TensorGroup:
        group = self._groups.get(parameter)
        if group is None:
            raise CheckpointError(
                f"{self._checkpoint.folder}: no tensor for the model's parameter {parameter};"
                " the checkpoint is incomplete or belongs to another model than its config.json"
            )
        return group

    def _convert(self, group: TensorGroup) -> dict[str, Tensor]:
        dtype = self._expected[group.first].dtype
        return self._run(group, {n: self._checkpoint.read(n).to(dtype) for _, n in group.members})

    def _run(self, group: TensorGroup, stored: dict[str, Tensor]) -> dict[str, Tensor]:
        try:
            return group.convert(stored, self._model)
        except (RuntimeError, ValueError, IndexError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(
                f"{self._checkpoint.folder}: cannot make {group.first} of {len(group.members)}"
                f" tensors from {group.members[0][1]} on: {reason}"
            ) from None

    def _stand_in(self, name: str) -> Tensor:
        shape, dtype = self._checkpoint.shape(name), self._checkpoint.dtype(name)
        return torch.empty(shape, dtype=dtype, device="meta")

    def _check_shape(self, name: str, tensor: Tensor) -> None:
        expected = self._expected[name].shape
        if tensor.shape != expected:
            raise CheckpointError(
                f"{self._checkpoint.folder}: {name} has shape {list(tensor.shape)},"
                f" config.json asks for {list(expected)};"
                " the checkpoint belongs to another configuration"
            )


def _grouped(
    model: PreTrainedModel, checkpoint: Checkpoint, expected: dict[str, Tensor]
) -> tuple[list[TensorGroup], tuple[str, ...]]:
    """Tensors by the parameters they make, as transformers' loader groups them; and the rest."""
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
    prefix = model.base_model_prefix
    groups: dict[str, TensorGroup] = {}
    unused: list[str] = []
    for name in sorted(checkpoint.names, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, expected)
        if target not in expected and name in expected:
            target, pattern = rename_source_key(name, [], [], prefix, expected)
        if target not in expected:
            unused.append(name)
            continue
        group = groups.setdefault(target, TensorGroup(target, by_pattern.get(pattern)))
        group.members.append((pattern or name, name))
    return list(groups.values()), tuple(unused)
