"""The gradient of a loss by the weights of a model, one block at a time.

For a linear y = x W^T with g = dL/dy, the gradient by its weight is sum_t g_t x_t^T [O, I].  It is
gathered in the backward of the block, beside some rows of x; memory is that of one block's weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from blockwright.capture.sweep import linear_sites
from blockwright.stream import Inputs, Loss, Stream, block_gradients, head_gradients, weight_of
from blockwright.types import Site

SAMPLED_ROWS = 1024
"""Rows of a site's inputs that are kept, evenly spaced over the text."""


@dataclass
class Slope:
    """What the loss feels of one weight."""

    gradient_OI: Tensor  # noqa: N815 - shape suffix
    """dL/dW, fp32"""
    rows: list[Tensor] = field(default_factory=list)

    @property
    def inputs_NI(self) -> Tensor:
        """Some rows of its inputs, fp32."""
        return torch.cat(self.rows)


class WeightSlopes:
    """Observer of a forward with a graph: dL/dW by site."""

    def __init__(self, tokens: int) -> None:
        """``tokens``: how many there will be."""
        self.slopes: dict[str, Slope] = {}
        self._step = max(1, tokens // SAMPLED_ROWS)

    def start_batch(self) -> None:
        """Nothing is kept between batches but the sums."""

    def __call__(self, site: Site, x_TI: Tensor, output: Tensor) -> None:
        x = x_TI.detach().float()
        if site.id not in self.slopes:
            self.slopes[site.id] = Slope(torch.zeros(site.shape))
        slope = self.slopes[site.id]
        slope.rows.append(x[:: self._step].clone())

        def add(gradient: Tensor) -> None:
            g_TO = gradient.reshape(-1, gradient.shape[-1]).float()
            slope.gradient_OI.addmm_(g_TO.T, x)

        output.register_hook(add)


@dataclass(frozen=True)
class SlopedBlock:
    """One block's weights as they are, and what the loss feels of them, by site id."""

    index: int
    weights: Mapping[str, Tensor]
    """[O, I] fp32"""
    slopes: Mapping[str, Slope]


def weight_slopes(
    stream: Stream, inputs: Inputs, folder: Path, loss: Loss
) -> Iterator[SlopedBlock]:
    """Yield the blocks with their slopes, last one first; ``folder`` keeps hidden states and
    gradients meanwhile.  ``loss``: of chunks of head outputs, see ``Stream.run_head``.
    """
    hidden = [folder / f"hidden-{place:04d}.bin" for place in range(len(stream.blocks) + 1)]
    behind = [path.with_name(f"gradient-{path.name}") for path in hidden]
    stem = stream.run_stem(inputs, hidden[0])
    for place, index in enumerate(stream.blocks):
        batches = stream.file(hidden[place], stem).batches(inputs.rows, inputs.batch_size)
        stream.run_block(index, stream.block(index), stem, batches, output=hidden[place + 1])
    head_gradients(stream, inputs, stem, stream.file(hidden[-1], stem), loss, behind[-1])
    for place, index in reversed(list(enumerate(stream.blocks))):
        block, observer = stream.block(index), WeightSlopes(inputs.values.numel())
        block_gradients(
            stream,
            index,
            block,
            stem,
            stream.file(hidden[place], stem).batches(inputs.rows, inputs.batch_size),
            stream.file(behind[place + 1], stem).batches(inputs.rows, inputs.batch_size),
            behind[place],
            observer=observer,
            watched=linear_sites(stream, index),
        )
        parameters, sites = stream.parameters(index, block), linear_sites(stream, index)
        weights = {site.id: weight_of(site, parameters[site.parameter]) for site in sites}
        yield SlopedBlock(index, weights, observer.slopes)
