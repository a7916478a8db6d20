"""Seeing what flows through a block's weights, without hooks and without knowing its modules.

A ``LinearTap`` watches matrix products and recognises a site by the memory of its weight: a whole
parameter (``nn.Linear``, Conv1D) or one expert's slice of a 3-D parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from blockwright.types import Site


class Observer(Protocol):
    """Sees the products of a block."""

    def start_batch(self) -> None:
        """Before every forward: memory of the last one may be used again."""

    def __call__(self, site: Site, x_TI: Tensor, output: Tensor) -> None:
        """A site multiplied ``x_TI`` [tokens, in]; ``output`` is as computed, of any shape."""


OPERANDS: dict[Any, tuple[int, int]] = {
    nn.functional.linear: (0, 1),
    torch.matmul: (0, 1),
    torch.mm: (0, 1),
    Tensor.matmul: (0, 1),
    Tensor.__matmul__: (0, 1),
    Tensor.mm: (0, 1),
    torch.addmm: (1, 2),
}
"""Watched functions: positions of input and weight among the arguments."""


class AllSeen(Exception):  # noqa: N818 - not an error: the end of a forward
    """Every watched site was seen: what is left of the forward shows nothing new."""


class LinearTap(TorchFunctionMode):
    """Calls ``observer`` for every product with the weight of a known site."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        sites: Mapping[str, Site],
        observer: Observer,
        *,
        stop: bool = False,
    ) -> None:
        """``parameters``: model-parameter name -> real tensor; ``sites``: those to watch;
        ``stop``: raise ``AllSeen`` as soon as every one of them was seen since ``start_batch``.
        """
        super().__init__()
        self._observer, self._stop = observer, stop
        self._unseen = set(sites)
        self._watched = frozenset(sites)
        self._sites: dict[int, Site] = {}
        for site in sites.values():
            weight = parameters[site.parameter]
            address = weight if site.expert is None else weight[site.expert]
            self._sites[address.data_ptr()] = site

    def start_batch(self) -> None:
        """Before every forward."""
        self._unseen = set(self._watched)
        self._observer.start_batch()

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        places = OPERANDS.get(func)
        if places is not None and len(args) > places[1]:
            inputs, weight = args[places[0]], args[places[1]]
            site = self._sites.get(weight.data_ptr()) if isinstance(weight, Tensor) else None
            if site is not None and inputs.numel():
                self._observer(site, inputs.reshape(-1, inputs.shape[-1]), result)
                self._unseen.discard(site.id)
                if self._stop and not self._unseen:
                    raise AllSeen
        return result
