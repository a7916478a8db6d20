"""A block as a function of what can be tuned in it.

Found by looking, not by name: every floating-point tensor of a packed module that its weight
depends on (scales; factors), and every one-dimensional parameter of the block that is no site's
weight (norms, biases).  The block keeps its own forward; at each call its parameters are put in
place, those of packed sites computed from their packed tensors.  Codes never change.

Names of tuned tensors:

    packed/<site id>/<tensor>    a stored tensor of a packed site
    parameter/<name>             a parameter of the model
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from blockwright.stream import Stream
from blockwright.tuning import (
    Trained,
    TrainedTensor,
    Values,
    depended_on,
    weight_of_tensors,
)
from blockwright.types import PackedLinear, Site, packed_name, parameter_name


class TunableBlock:
    """One loaded block; ``trained`` are its tunable tensors at their start."""

    def __init__(
        self,
        stream: Stream,
        index: int,
        block: nn.Module,
        packed: Mapping[Site, PackedLinear],
        absent: Collection[str] = (),
    ) -> None:
        """``packed``: portable modules of the block's packed sites; ``absent``: parameters that are
        not there and stay at zero.

        The block's own copies of packed weights are let go.
        """
        self._dtype, self._device = stream.dtype, torch.device(stream.device)
        self._prefix = f"{stream.skeleton.block_path}.{index}."
        self._block = _Substituted(block)
        self._packed: dict[str, list[tuple[Site, PackedLinear]]] = defaultdict(list)
        for site, module in packed.items():
            self._packed[site.parameter].append((site, module))
        stored = stream.skeleton.parameters
        left = {*absent, *(site.parameter for site in stream.skeleton.block_sites(index))}
        self.trained: dict[str, Trained] = {}
        for site, module in packed.items():
            for name in depended_on(module):
                tensor = module.stored_tensor(name).to(self._device)
                self.trained[packed_name(site.id, name)] = TrainedTensor(tensor)
        for name, parameter in stream.parameters(index, block).items():
            if parameter.ndim == 1 and parameter.is_floating_point() and name not in left:
                tuned = TrainedTensor(parameter, dtype=stored[name].dtype)
                self.trained[parameter_name(name)] = tuned
        self._kept = self._experts_kept(block)

    def _experts_kept(self, block: nn.Module) -> dict[str, Tensor]:
        """Stacks of experts of which some are not packed; other packed weights are let go."""
        kept = {}
        for name, members in self._packed.items():
            parameter = block.get_parameter(name.removeprefix(self._prefix))
            if len(members) < (parameter.shape[0] if members[0][0].expert is not None else 1):
                kept[name] = parameter.data
            else:
                parameter.data = parameter.data.new_empty(0)
        return kept

    def forward(self, values: Values, inputs: Tensor, call: Any) -> Tensor:
        """Outputs [B, T, H] with the given values; ``call``: a ``BlockCall``."""
        own = len(parameter_name(""))
        tensors = {
            name[own:].removeprefix(self._prefix): value.to(self._dtype)
            for name, value in values.items()
            if name.startswith(parameter_name(""))
        }
        for name, members in self._packed.items():
            tensors[name.removeprefix(self._prefix)] = self._weight(name, members, values)
        self._block.tensors = tensors
        outputs: Tensor = call.run(self._block, inputs.to(self._device))
        return outputs

    def _weight(
        self, name: str, members: list[tuple[Site, PackedLinear]], values: Values
    ) -> Tensor:
        """The parameter that packed sites stand for, with gradients to their values."""
        made: dict[int | None, Tensor] = {}
        for site, module in members:
            W_OI = weight_with(module, site.id, values).to(self._dtype)
            made[site.expert] = W_OI.T if site.transposed else W_OI
        if None in made:
            return made[None]
        experts = range(len(self._kept[name]) if name in self._kept else len(made))
        return torch.stack(
            [made[expert] if expert in made else self._kept[name][expert] for expert in experts]
        )


def weight_with(module: PackedLinear, site: str, values: Values) -> Tensor:
    """The weight [out, in] of a packed module with some of its tensors replaced."""
    named = {name: values.get(packed_name(site, name)) for name in module.stored_names}
    return weight_of_tensors(module, {n: value for n, value in named.items() if value is not None})


class _Substituted(nn.Module):
    """A block that is called with ``tensors`` in place of parameters of these names."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.tensors: dict[str, Tensor] = {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return functional_call(self.block, self.tensors, args, kwargs)
